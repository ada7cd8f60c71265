"""``python -m sglang_flowprefill.launch_server``: SGLang's server with FlowPrefill on.

Takes every flag of ``sglang.launch_server`` plus the ``--flowprefill-*`` group. Without a GPU it
fills in SGLang's CPU settings; without ``--model-path`` it serves the embedded model. It never
falls back to a stock server: what does not fit stops the start with the reason.
"""

import os
import sys
from collections.abc import Sequence

from sglang_flowprefill.activation import enable
from sglang_flowprefill.cpu.defaults import cpu_environment, cpu_server_defaults, is_cpu_only


def main(argv: Sequence[str] | None = None) -> None:
    """Run the server; does not return before it stops."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    enable()
    if is_cpu_only():
        for name, value in cpu_environment().items():
            os.environ.setdefault(name, value)
        arguments = [*cpu_server_defaults(_flags(arguments)), *arguments]
    if not _has_model(arguments):
        from sglang_flowprefill.cpu.embedded_model import embedded_model_path  # noqa: PLC0415

        arguments = ["--model-path", str(embedded_model_path()), *arguments]
    from sglang_flowprefill.adapter.launch import launch  # noqa: PLC0415 (after the environment)

    launch(arguments, _announce)


def _flags(arguments: Sequence[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}


def _has_model(arguments: Sequence[str]) -> bool:
    """A config file may name the model as well; then SGLang's own parser judges."""
    return bool({"--model-path", "--model", "--config", "--help"} & _flags(arguments)) or (
        "-h" in arguments
    )


def _announce(url: str, model_path: str) -> None:
    print(f"\nFlowPrefill serves {model_path}\n  at {url}\n", flush=True)


if __name__ == "__main__":
    main()
