"""``python -m sglang_flowprefill patch``: patch the installed SGLang, and take the patches back.

For where plugins are not allowed, and for SLO fields in request bodies. Never imports SGLang.
Stop its servers first: a running one may load a module of which it has the other half.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.syntax import Syntax

from sglang_flowprefill import patching
from sglang_flowprefill.patching import FileState, Installation, PatchSet, TreeState

EXIT_STATUS = {
    TreeState.APPLIED: 0,
    TreeState.CLEAN: 3,
    TreeState.PARTLY: 4,
    TreeState.MODIFIED: 5,
}
"""What ``status`` ends with. 1 is an error; a run that was cut short counts as partly applied."""

_HELP = {
    "status": "say what state every file is in; ends with 0 applied, 3 clean, 4 partly applied or "
    "interrupted, 5 modified by others, 1 error",
    "check": "show what apply would change, and whether it would succeed",
    "apply": "apply all patches for the installed release, or none",
    "revert": "give back the original files",
}


def add_command(commands: Any) -> None:
    """Add the command to those of ``argparse``."""
    parser = commands.add_parser(
        "patch", help="patch the installed SGLang, and take it back", description=__doc__
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, action in (
        ("status", show_status),
        ("check", check),
        ("apply", apply),
        ("revert", revert),
    ):
        action_parser = actions.add_parser(name, help=_HELP[name], description=_HELP[name])
        action_parser.add_argument(
            "--target",
            type=Path,
            metavar="DIR",
            help="site-packages of another environment (default: what this Python imports)",
        )
        action_parser.set_defaults(action=action)
    parser.set_defaults(run=run, takes_server_flags=False)


def run(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Find SGLang and its patches, and do what was asked; return the exit status.

    Raises:
        PatchError: SGLang is not found, has no patches, or is not in a state for that.
    """
    installation = patching.find_installation(args.target)
    patch_set = patching.patch_set_for(installation.version)
    print(f"SGLang {installation.version} in {installation.root}")
    status: int = args.action(installation, patch_set)
    return status


def show_status(installation: Installation, patch_set: PatchSet) -> int:
    """Print the state of each file and of all together."""
    status = patching.status_of(installation, patch_set)
    for file in status.inspection.files:
        print(f"  {file.state.value:9} {file.change.path}")
    state = status.inspection.state
    print(state.value)
    if status.is_stale:
        print("SGLang was reinstalled since it was patched; revert removes what is left of that")
    if status.is_interrupted:
        print("a run was cut short: apply finishes it, revert undoes it")
        if state is not TreeState.MODIFIED:
            return EXIT_STATUS[TreeState.PARTLY]
    return EXIT_STATUS[state]


def check(installation: Installation, patch_set: PatchSet) -> int:
    """Print every patch with its reason, without touching anything."""
    status = patching.require_applicable(installation, patch_set)
    if status.inspection.state is TreeState.APPLIED:
        print("applied already: apply would change nothing")
        return 0
    for patch in patch_set.patches:
        print(f"\n{patch.file}\n  why: {patch.why}\n  how: {patch.how}\n")
        _print_diff(patch.text[patch.text.index(b"diff --git ") :].decode())
    num_files = len(status.inspection.changes_in(FileState.ORIGINAL))
    print(f"apply would change {num_files} files; nothing was changed now")
    return 0


def apply(installation: Installation, patch_set: PatchSet) -> int:
    """Apply the whole set."""
    did = patching.apply(installation, patch_set)
    print(f"applied {len(patch_set.patches)} patches" if did else "applied already")
    return 0


def revert(installation: Installation, patch_set: PatchSet) -> int:
    """Give back the originals."""
    did = patching.revert(installation, patch_set)
    print("reverted: every file is the original" if did else "not patched: nothing to revert")
    return 0


def _print_diff(text: str) -> None:
    """Print in colours on a terminal, and byte for byte elsewhere."""
    if sys.stdout.isatty():
        syntax = Syntax(text, "diff", theme="ansi_dark", word_wrap=True)
        Console().print(syntax)
    else:
        print(text, end="")
