"""``python -m sglang_flowprefill.launch_server``: SGLang's server with FlowPrefill on.

Takes every flag of ``sglang.launch_server`` plus the ``--flowprefill-*`` group. Without a GPU it
fills in SGLang's CPU settings; without ``--model-path`` it serves the embedded model. It never
falls back to a stock server: what does not fit stops the start with the reason.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sglang_flowprefill.cpu.defaults import cpu_environment, cpu_server_defaults, is_cpu_only
from sglang_flowprefill.enablement import PLUGIN_NAME, enable, is_plugin_allowed
from sglang_flowprefill.errors import ConfigError, FlowPrefillError
from sglang_flowprefill.patching import is_installed_patched


def main(argv: Sequence[str] | None = None) -> None:
    """Run the server; does not return before it stops.

    Raises:
        SystemExit: It cannot start; the message says why.
    """
    try:
        arguments = complete_arguments(sys.argv[1:] if argv is None else argv)
        from sglang_flowprefill.adapter.launch import launch  # noqa: PLC0415 (loads SGLang)

        launch(arguments, _announce)
    except FlowPrefillError as error:
        raise SystemExit(f"flowprefill: error: {error}") from error


def complete_arguments(given: Sequence[str]) -> list[str]:
    """Fill in what the user left out, and switch FlowPrefill on for SGLang's processes to come.

    Args:
        given: Flags of SGLang and ours.

    Returns:
        Those, and the defaults of this machine. Variables that SGLang reads early are set.

    Raises:
        FlowPrefillError: The plugin is filtered out, or the embedded model cannot be had.
    """
    arguments = list(given)
    _require_plugin_allowed(os.environ.get("SGLANG_PLUGINS", ""))
    asked = _asked_for(arguments)
    in_file = _settings_in(asked.config)
    model_path: str | None = asked.model_path or in_file.get("model-path")
    if model_path is None and not asked.help:
        from sglang_flowprefill.cpu.embedded_model import embedded_model_path  # noqa: PLC0415

        dtype = "float32" if asked.dtype == "float32" else "bfloat16"
        model_path = str(embedded_model_path(dtype))
        arguments += ["--model-path", model_path]
    if is_cpu_only():
        for name, value in cpu_environment(model_path, _num_ranks(asked, in_file)).items():
            os.environ.setdefault(name, value)
        # SGLang lets the command line beat the file: what the file says is not defaulted.
        arguments += cpu_server_defaults([*arguments, *(f"--{name}" for name in in_file)])
    enable()
    return arguments


def _require_plugin_allowed(allowed: str) -> None:
    """SGLang loads only the plugins named in SGLANG_PLUGINS, silently skipping the others.

    A patched SGLang loads ours beside them.
    """
    if not (is_plugin_allowed(allowed) or is_installed_patched()):
        raise ConfigError(
            "SGLANG_PLUGINS",
            allowed,
            f"must name {PLUGIN_NAME}, or be unset, or SGLang be patched to load it all the same "
            "(python -m sglang_flowprefill patch check)",
        )


def _asked_for(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the few flags that decide defaults here; SGLang's parser judges all of them later."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--model-path", "--model")
    parser.add_argument("--dtype")
    parser.add_argument("--tp-size", "--tensor-parallel-size", "--tp")
    parser.add_argument("--dp-size", "--data-parallel-size", "--dp")
    parser.add_argument("--config")
    parser.add_argument("-h", "--help", action="store_true")
    return parser.parse_known_args(arguments)[0]


def _settings_in(config_file: str | None) -> dict[str, Any]:
    """Return SGLang's settings in a ``--config`` file, by flag name without dashes.

    What is wrong with the file is left to SGLang's own reader to say.
    """
    if config_file is None:
        return {}
    try:
        parsed = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    settings = parsed if isinstance(parsed, dict) else {}
    return {str(name).replace("_", "-"): value for name, value in settings.items()}


def _num_ranks(asked: argparse.Namespace, in_file: dict[str, Any]) -> int:
    """Return the ranks of all replicas; what is no number SGLang's parser will refuse."""
    tensor_parallel = _size(asked.tp_size, in_file, "tp-size", "tensor-parallel-size", "tp")
    replicas = _size(asked.dp_size, in_file, "dp-size", "data-parallel-size", "dp")
    return tensor_parallel * replicas


def _size(given: str | None, in_file: dict[str, Any], *names: str) -> int:
    found = [given, *(in_file.get(name) for name in names)]
    text = str(next((value for value in found if value is not None), 1))
    return int(text) if text.isdecimal() else 1


def _announce(url: str, model_path: str) -> None:
    body = (
        '{"model": "default", "max_tokens": 32, "temperature": 0, '
        '"messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    )
    print(
        f"\nFlowPrefill serves {model_path}\n"
        f"  at         {url}\n"
        f"  live page  {url}/flowprefill\n"
        f"  try it     curl {url}/v1/chat/completions -H 'content-type: application/json' "
        f"-d '{body}'\n"
        "  stop it    Ctrl-C\n",
        flush=True,
    )


if __name__ == "__main__":
    main()
