"""Where SGLang is installed and which release it is, found out without importing it."""

import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from sglang_flowprefill.errors import PatchError

PACKAGE = "sglang"


@dataclass(frozen=True, slots=True)
class Installation:
    """An installed SGLang.

    Attributes:
        root: The folder that holds the package, usually ``site-packages``.
        version: As its distribution says.
    """

    root: Path
    version: str


def find_installation(target: Path | None = None) -> Installation:
    """Find SGLang.

    Args:
        target: The ``site-packages`` of another environment; None for the one that this
            interpreter would import.

    Raises:
        PatchError: There is no SGLang, or its version is not recorded.
    """
    root = _importable_root() if target is None else target.absolute()
    if not (root / PACKAGE / "__init__.py").is_file():
        raise PatchError(f"{root} holds no package {PACKAGE}; name the folder that does")
    # A copied package may lie before the environment that its distribution is recorded in.
    found = _distribution([str(root)]) or (_distribution(sys.path) if target is None else None)
    if found is None:
        raise PatchError(
            f"{root} has no {PACKAGE}-*.dist-info, so that the version is unknown; install SGLang "
            "with pip, or name the folder with --target"
        )
    return Installation(root, found.version)


def _importable_root() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise PatchError(
            "this Python has no SGLang; install it, or name another environment's site-packages "
            "with --target"
        )
    return Path(spec.submodule_search_locations[0]).absolute().parent


def _distribution(path: list[str]) -> Distribution | None:
    return next(iter(distributions(name=PACKAGE, path=path)), None)
