"""Apply and revert, all or nothing, from any state that a killed run may have left.

Every file is at every moment either the original or the patched one, since it changes by a rename.
So hashes say where things stand, and starting again finishes what was begun:

    clean --apply--> applying --> applied --revert--> reverting --> clean
                        |  ^                              |
                        +--+--- apply or revert again ----+

Only originals that nobody kept (a tree patched by other means) cannot be given back.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sglang_flowprefill.errors import PatchError
from sglang_flowprefill.patching.inspection import FileState, Inspection, TreeState, inspect_tree
from sglang_flowprefill.patching.installation import Installation
from sglang_flowprefill.patching.register import FileChange, PatchSet
from sglang_flowprefill.patching.rollback import Phase, Rollback

_STABLE = {Phase.NONE, Phase.APPLIED}


@dataclass(frozen=True, slots=True)
class Status:
    """Where an installation stands.

    Attributes:
        inspection: Its files.
        phase: What the journal says.
        has_folder: True if anything is kept beside the package.
    """

    inspection: Inspection
    phase: Phase
    has_folder: bool

    @property
    def is_interrupted(self) -> bool:
        """True if a run was killed on its way."""
        return self.phase not in _STABLE or (self.has_folder and self.phase is Phase.NONE)

    @property
    def is_stale(self) -> bool:
        """True if pip has replaced what was patched; what is kept belongs to nothing."""
        patched = self.inspection.changes_in(FileState.PATCHED)
        return self.phase is Phase.APPLIED and not any(change.before for change in patched)


def status_of(installation: Installation, patch_set: PatchSet) -> Status:
    """Look at an installation; changes nothing."""
    rollback = Rollback(installation.root)
    inspection = inspect_tree(installation.root, patch_set)
    return Status(inspection, rollback.phase, rollback.folder.exists())


def require_applicable(installation: Installation, patch_set: PatchSet) -> Status:
    """Return the status if ``apply`` would succeed; changes nothing.

    Raises:
        PatchError: A file is neither the original nor the patched one, or a patched one could
            not be taken back, or a patch does not make what the register promises.
    """
    status = status_of(installation, patch_set)
    _require_unmodified(installation, status.inspection)
    if status.inspection.state is not TreeState.APPLIED:
        _require_originals(installation, status.inspection)
        for change in status.inspection.changes_in(FileState.ORIGINAL):
            _patched_content(installation.root, patch_set, change)
    return status


def apply(installation: Installation, patch_set: PatchSet) -> bool:
    """Patch the installed SGLang.

    Returns:
        False if nothing was left to do.

    Raises:
        PatchError: As ``require_applicable``, or the file system refuses. No half-written file
            is left; what was begun can be finished or reverted.
    """
    with _exclusively(installation.root):
        status = require_applicable(installation, patch_set)
        state = status.inspection.state
        if state is TreeState.APPLIED and not status.is_interrupted:
            return False
        rollback = Rollback(installation.root)
        if status.is_stale:
            rollback.remove()
        rollback.enter(Phase.APPLYING)
        changes = status.inspection.changes_in(FileState.ORIGINAL)
        for change in changes:
            rollback.stage(change, _patched_content(installation.root, patch_set, change))
        for change in changes:
            rollback.exchange(change)
        rollback.discard_staged()
        rollback.enter(Phase.APPLIED)
    return True


def revert(installation: Installation, patch_set: PatchSet) -> bool:
    """Give every file back, as it was before it was patched.

    Returns:
        False if nothing was left to do.

    Raises:
        PatchError: A file was changed since, or its original is not there, or the file system
            refuses.
    """
    with _exclusively(installation.root):
        status = status_of(installation, patch_set)
        inspection = status.inspection
        _require_unmodified(installation, inspection)
        if inspection.state is TreeState.CLEAN and not status.has_folder:
            return False
        _require_originals(installation, inspection)
        rollback = Rollback(installation.root)
        if status.is_stale:
            rollback.remove()
        rollback.enter(Phase.REVERTING)
        for change in inspection.changes_in(FileState.PATCHED):
            rollback.give_back(change)
        for file in inspection.files:
            rollback.give_back_compiled(file.change)
        rollback.remove()
    return True


@contextmanager
def _exclusively(root: Path) -> Iterator[None]:
    """Keep other runs out, and word what the file system has to say."""
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)
    except BlockingIOError:
        raise PatchError(f"another patch command is at work in {root}; wait for it") from None
    except OSError as error:
        raise PatchError(
            f"{error}; put this right (an installation is patched by its owner), then run apply "
            "or revert again"
        ) from error


def _patched_content(root: Path, patch_set: PatchSet, change: FileChange) -> bytes:
    original = None if change.before is None else (root / change.path).read_bytes()
    return patch_set.patched(change.path, original)


def _require_unmodified(installation: Installation, inspection: Inspection) -> None:
    problems = [
        f"  {file.change.path} is {file.state.value}: sha256 {file.sha256 or 'of no file'}, "
        f"original {file.change.before or 'no file'}, patched {file.change.after}"
        for file in inspection.files
        if file.state in {FileState.MODIFIED, FileState.MISSING}
    ]
    if problems:
        listed = "\n".join(problems)
        raise PatchError(
            f"SGLang {installation.version} in {installation.root} was changed by others:\n"
            f"{listed}\n{_reinstall(installation)}, or undo these changes by hand"
        )


def _require_originals(installation: Installation, inspection: Inspection) -> None:
    rollback = Rollback(installation.root)
    patched = inspection.changes_in(FileState.PATCHED)
    if lost := [change.path for change in patched if not rollback.has_original(change)]:
        raise PatchError(
            f"patched, but their originals are not kept in {rollback.folder}: {', '.join(lost)}; "
            f"{_reinstall(installation)}"
        )


def _reinstall(installation: Installation) -> str:
    return (
        "get the originals with: pip install --force-reinstall --no-deps "
        f"sglang=={installation.version}"
    )
