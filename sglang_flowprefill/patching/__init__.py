"""Patches for an installed SGLang: found, checked, applied and taken back without importing it.

For deployments where SGLang's plugin system is missing or not allowed, and for what a plugin cannot
reach. ``register.py`` knows what there is, ``inspection.py`` what state a tree is in,
``transaction.py`` how it gets from one to the other. Nothing here names a release.
"""

from sglang_flowprefill.errors import PatchError
from sglang_flowprefill.patching.inspection import FileState, TreeState
from sglang_flowprefill.patching.installation import Installation, find_installation
from sglang_flowprefill.patching.register import Patch, PatchSet, patch_set_for, read_register
from sglang_flowprefill.patching.transaction import (
    Status,
    apply,
    require_applicable,
    revert,
    status_of,
)

__all__ = [
    "FileState",
    "Installation",
    "Patch",
    "PatchSet",
    "Status",
    "TreeState",
    "apply",
    "find_installation",
    "is_installed_patched",
    "patch_set_for",
    "read_register",
    "require_applicable",
    "revert",
    "status_of",
]


def is_installed_patched() -> bool:
    """Tell whether the SGLang that this Python imports has every patch for its release."""
    try:
        installation = find_installation()
        status = status_of(installation, patch_set_for(installation.version))
    except PatchError:
        return False
    return status.inspection.state is TreeState.APPLIED
