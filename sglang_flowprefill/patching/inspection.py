"""What state the files of a patch set are in, told by their hashes alone."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sglang_flowprefill.patching.register import FileChange, PatchSet, sha256_of


class FileState(Enum):
    """One file, compared with its register entry."""

    ORIGINAL = "original"
    PATCHED = "patched"
    MODIFIED = "modified"
    MISSING = "missing"


class TreeState(Enum):
    """All files together."""

    CLEAN = "clean"
    APPLIED = "applied"
    PARTLY = "partly applied"
    MODIFIED = "modified"


@dataclass(frozen=True, slots=True)
class InspectedFile:
    """A file as it lies there.

    Attributes:
        change: What the set does to it.
        sha256: Of its content; None if it does not exist.
    """

    change: FileChange
    sha256: str | None

    @property
    def state(self) -> FileState:
        """Compare with the register."""
        if self.sha256 == self.change.before:
            return FileState.ORIGINAL
        if self.sha256 == self.change.after:
            return FileState.PATCHED
        return FileState.MISSING if self.sha256 is None else FileState.MODIFIED


@dataclass(frozen=True, slots=True)
class Inspection:
    """Every file of a set."""

    files: tuple[InspectedFile, ...]

    @property
    def state(self) -> TreeState:
        """Sum up."""
        states = {file.state for file in self.files}
        if states & {FileState.MODIFIED, FileState.MISSING}:
            return TreeState.MODIFIED
        if len(states) > 1:
            return TreeState.PARTLY
        return TreeState.APPLIED if states == {FileState.PATCHED} else TreeState.CLEAN

    def changes_in(self, state: FileState) -> tuple[FileChange, ...]:
        """Return the changes of all files in one state."""
        return tuple(file.change for file in self.files if file.state is state)


def inspect_tree(root: Path, patch_set: PatchSet) -> Inspection:
    """Look at every file of a set.

    Args:
        root: The folder that holds the package.
        patch_set: The set for the installed release.
    """
    return Inspection(
        tuple(InspectedFile(change, hash_of(root / change.path)) for change in patch_set.changes)
    )


def hash_of(path: Path) -> str | None:
    """Return the sha256 of a file, None if it does not exist."""
    try:
        return sha256_of(path.read_bytes())
    except FileNotFoundError:
        return None
