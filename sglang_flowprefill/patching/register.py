"""The register of patches, and the set of them for one release of SGLang.

``register.toml`` says of every patch what it is for, and of every file that it touches the sha256
before and after. A set is all patches for one release in the order of their names, applied as a
whole. Several may touch one file: the hashes then form a chain.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from sglang_flowprefill.errors import PatchError
from sglang_flowprefill.patching.unified_diff import FileDiff, parse_patch

REGISTER = "register.toml"


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file before and after.

    Attributes:
        path: Relative to the folder that holds the package, with slashes.
        before: sha256 of the content, None if there is no such file.
        after: sha256 of the patched content.
    """

    path: str
    before: str | None
    after: str


@dataclass(frozen=True)
class Patch:
    """One patch and its entry in the register.

    Attributes:
        file: Relative to the folder of the register.
        target: Exact version of SGLang.
        why: What is missing without it.
        how: What it does about that.
        upstream: Where it was proposed, or "not sent".
        remove_when: What has to happen before it can go.
        files: What it changes.
        text: The patch itself.
    """

    file: str
    target: str
    why: str
    how: str
    upstream: str
    remove_when: str
    files: tuple[FileChange, ...]
    text: bytes

    @cached_property
    def diffs(self) -> Mapping[str, FileDiff]:
        """What it does to each file."""
        try:
            return {diff.path: diff for diff in parse_patch(self.text)}
        except PatchError as error:
            raise PatchError(f"{self.file}: {error}") from error


@dataclass(frozen=True)
class PatchSet:
    """All patches for one release, in order."""

    target: str
    patches: tuple[Patch, ...]

    @cached_property
    def changes(self) -> tuple[FileChange, ...]:
        """What the whole set does to each file.

        Raises:
            PatchError: A later patch does not take what an earlier one makes.
        """
        total: dict[str, FileChange] = {}
        for patch in self.patches:
            for change in patch.files:
                earlier = total.get(change.path)
                if earlier is not None and earlier.after != change.before:
                    raise PatchError(
                        f"{REGISTER}: {patch.file}: 'before' of {change.path} is not what the "
                        "patches before make"
                    )
                before = change.before if earlier is None else earlier.before
                total[change.path] = FileChange(change.path, before, change.after)
        return tuple(total.values())

    def patched(self, path: str, original: bytes | None) -> bytes:
        """Return what the set makes of a file.

        Args:
            path: One of ``changes``.
            original: Its content, None if there is no such file.

        Raises:
            PatchError: The content is not the one that the set was made for.
        """
        content = original
        for patch in self.patches:
            for change in patch.files:
                if change.path == path:
                    content = patch.diffs[path].apply(content)
                    _require_hash(patch, change, content)
        if content is None:
            raise PatchError(f"no patch for SGLang {self.target} touches {path}")
        return content


def sha256_of(content: bytes) -> str:
    """Return the hash that the register uses."""
    return hashlib.sha256(content).hexdigest()


def shipped_register() -> Path:
    """Return the folder of the patches that come with this package."""
    return Path(str(files("sglang_flowprefill.patches")))


def read_register(folder: Path) -> tuple[Patch, ...]:
    """Read every entry and its patch.

    Raises:
        PatchError: An entry lacks a field, or its patch does not touch the files that it names.
    """
    register = tomllib.loads((folder / REGISTER).read_text(encoding="utf-8"))
    return tuple(_patch(folder, entry) for entry in register.get("patch", ()))


def patch_set_for(version: str, folder: Path | None = None) -> PatchSet:
    """Return the set for a release.

    Args:
        version: Of SGLang.
        folder: Of the register; None for the one that comes with this package.

    Raises:
        PatchError: There is none, or the register is wrong.
    """
    patches = read_register(shipped_register() if folder is None else folder)
    chosen = sorted((patch for patch in patches if patch.target == version), key=_name)
    if not chosen:
        known = ", ".join(sorted({patch.target for patch in patches})) or "none"
        raise PatchError(f"there are no patches for SGLang {version}; there are for: {known}")
    return PatchSet(version, tuple(chosen))


def _name(patch: Patch) -> str:
    return patch.file


def _patch(folder: Path, entry: Mapping[str, Any]) -> Patch:
    given = dict(entry)
    name = given.get("file", "an entry without 'file'")
    wanted = {field.name for field in fields(Patch)} - {"text"}
    if wrong := wanted ^ given.keys():
        raise PatchError(f"{REGISTER}: {name}: missing or unknown: {', '.join(sorted(wrong))}")
    changes = tuple(
        FileChange(file["path"], file.get("before"), file["after"]) for file in given.pop("files")
    )
    patch = Patch(**given, files=changes, text=(folder / name).read_bytes())
    if {change.path for change in changes} != patch.diffs.keys():
        raise PatchError(f"{REGISTER}: {name}: 'files' are not those that the patch touches")
    return patch


def _require_hash(patch: Patch, change: FileChange, content: bytes) -> None:
    if (found := sha256_of(content)) != change.after:
        raise PatchError(
            f"{patch.file} makes {change.path} with sha256 {found}, but {REGISTER} promises "
            f"{change.after}"
        )
