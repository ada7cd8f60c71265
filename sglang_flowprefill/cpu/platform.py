"""SGLang's platform entry point: makes SGLang importable on a machine without a GPU.

SGLang calls ``activate`` in every process, while its utilities are imported and before any of
its modules asks for a GPU package. That is the one moment that is early enough: a general
plugin runs after the scheduler process has already failed on ``from sgl_kernel import ...``.

``triton`` is out of reach from here, since SGLang imports it a few lines earlier. On a full
installation it is there and imports without a GPU; the CPU environment installs the local
distribution ``requirements/triton-stand-in``.
"""

import logging
import os
import sys
from importlib import import_module
from importlib.util import find_spec

from sglang_flowprefill.cpu import stand_in

logger = logging.getLogger(__name__)

# SGLang imports these two in every process, so trying them here costs nothing extra; both hold
# native code that may be installed and yet not load (no libcuda, built for another torch).
_NATIVE_PACKAGES = ("sgl_kernel", "torchvision")
# Imported only by SGLang's benchmark client, and slowly: looked for, not tried.
_PYTHON_PACKAGES = ("datasets",)


def activate() -> None:
    """Put stand-ins where the CPU engine has no working package; never selects a platform.

    Does nothing unless SGLang's CPU engine is asked for with ``SGLANG_USE_CPU_ENGINE=1``, and
    nothing to a package that imports. Returning None leaves SGLang's own CPU platform in charge.
    """
    if os.environ.get("SGLANG_USE_CPU_ENGINE") != "1":
        return
    for name in (*_NATIVE_PACKAGES, *_PYTHON_PACKAGES):
        reason = _why_unusable(name)
        if reason:
            logger.debug("%s is replaced by a stand-in: %s", name, reason)
            stand_in.install(name, reason)


def _why_unusable(name: str) -> str:
    """Say why ``name`` cannot be imported; empty if it can."""
    if name in sys.modules:
        return ""
    if find_spec(name) is None:
        return "not installed"
    if name in _NATIVE_PACKAGES:
        try:
            import_module(name)
        except Exception as error:  # noqa: BLE001  # native packages fail in many ways
            return f"installed, but its import fails: {error}"
    return ""
