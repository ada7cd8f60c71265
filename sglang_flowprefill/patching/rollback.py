"""What is kept beside the package so that a patched tree can become the original again.

The folder ``.sglang-flowprefill`` lies beside the package, on the same file system, and holds

    journal.json   what is under way or done, written before anything else happens
    originals/     the original files, and their compiled modules
    staged/        patched files that wait to take their place

An original is kept as a hard link and given back by a rename: what comes back is the very same
file, with its bytes, mode, owner and times. Compiled modules are kept too, since one that is not
checked against its source (``compileall --invalidation-mode unchecked-hash``) would hide the patch.
"""

import json
import os
import shutil
from enum import Enum
from pathlib import Path

from sglang_flowprefill.errors import PatchError
from sglang_flowprefill.patching.inspection import hash_of
from sglang_flowprefill.patching.register import FileChange

FOLDER = ".sglang-flowprefill"


class Phase(Enum):
    """What the journal says."""

    NONE = "nothing"
    APPLYING = "applying"
    APPLIED = "applied"
    REVERTING = "reverting"


class Rollback:
    """The folder of one installation.

    Args:
        root: The folder that holds the package.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / FOLDER
        self._journal = self.folder / "journal.json"
        self._originals = self.folder / "originals"
        self._staged = self.folder / "staged"

    @property
    def phase(self) -> Phase:
        """What is under way or done.

        Raises:
            PatchError: The journal was damaged.
        """
        try:
            return Phase(json.loads(self._journal.read_bytes())["phase"])
        except FileNotFoundError:
            return Phase.NONE
        except (ValueError, KeyError, TypeError) as error:
            raise PatchError(
                f"{self._journal} is damaged ({error}); reinstall SGLang with pip "
                f"--force-reinstall --no-deps and delete {self.folder}"
            ) from error

    def enter(self, phase: Phase) -> None:
        """Record what comes next, for good, before it begins."""
        self.folder.mkdir(exist_ok=True)
        new = self._journal.with_suffix(".new")
        write_durably(new, json.dumps({"phase": phase.value}).encode())
        new.replace(self._journal)
        sync_folder(self.folder)
        sync_folder(self._root)

    def stage(self, change: FileChange, content: bytes) -> None:
        """Write a patched file out of the way, with mode and owner of what it replaces."""
        # A file that is new to the package looks like the package's others.
        model = self._root / (change.path if change.before else "sglang/__init__.py")
        staged = self._staged / change.path
        staged.parent.mkdir(parents=True, exist_ok=True)
        write_durably(staged, content)
        status = model.stat()
        staged.chmod(status.st_mode & 0o7777)
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(staged, status.st_uid, status.st_gid)

    def exchange(self, change: FileChange) -> None:
        """Keep the original and put the staged file in its place.

        Raises:
            PatchError: The original has changed since it was looked at.
        """
        target = self._root / change.path
        if change.before is not None:
            self._keep(change, target)
        (self._staged / change.path).replace(target)
        sync_folder(target.parent)

    def discard_staged(self) -> None:
        """Forget the patched files that did not take their place."""
        _remove_tree(self._staged)

    def has_original(self, change: FileChange) -> bool:
        """Tell whether a patched file can be taken back."""
        return change.before is None or hash_of(self._originals / change.path) == change.before

    def give_back(self, change: FileChange) -> None:
        """Put the original back, or take away the file that the patch made."""
        target = self._root / change.path
        for compiled in _compiled_modules(target):
            compiled.unlink()
        if change.before is None:
            target.unlink()
        else:
            (self._originals / change.path).replace(target)
        sync_folder(target.parent)

    def give_back_compiled(self, change: FileChange) -> None:
        """Put the compiled modules of an original back."""
        folder = (self._root / change.path).parent / "__pycache__"
        for kept in _compiled_modules(self._originals / change.path):
            folder.mkdir(exist_ok=True)
            kept.replace(folder / kept.name)

    def remove(self) -> None:
        """Leave nothing behind. The journal goes last: what is cut short is seen and finished."""
        if not self.folder.exists():
            return
        self.discard_staged()
        _remove_tree(self._originals)
        self._journal.with_suffix(".new").unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)
        self.folder.rmdir()
        sync_folder(self._root)

    def _keep(self, change: FileChange, target: Path) -> None:
        original = self._originals / change.path
        (original.parent / "__pycache__").mkdir(parents=True, exist_ok=True)
        for compiled in _compiled_modules(target):
            compiled.replace(original.parent / "__pycache__" / compiled.name)
        original.unlink(missing_ok=True)
        os.link(target, original, follow_symlinks=False)
        sync_folder(original.parent)
        if not self.has_original(change):
            raise PatchError(f"{target} changed while it was patched; stop what writes it")


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that its content outlives a power failure."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _compiled_modules(source: Path) -> list[Path]:
    """Return what any interpreter compiled of a source file, at any level of optimisation."""
    return sorted((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc"))


def _remove_tree(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
