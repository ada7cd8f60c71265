"""Unified diffs in the form of ``git format-patch``, applied to bytes.

Strict on purpose: a hunk fits exactly where it says or not at all. The files that a patch is for
are known by their hashes, so there is nothing to search for, and a near miss must not pass. Only
changes of text and new files are understood; everything else that git can say is refused.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from sglang_flowprefill.errors import PatchError

_FILE = re.compile(rb"diff --git a/(\S+) b/(\S+)\n")
_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_SIGNATURE = b"-- \n"
_NO_NEWLINE = b"\\ "
_NEW_FILE = b"new file mode 100644\n"


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines that give way to other lines.

    Attributes:
        first_line: Index of the first line of ``before`` in the file, from 0.
        before: Lines with their ends, context included.
        after: What takes their place.
    """

    first_line: int
    before: tuple[bytes, ...]
    after: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FileDiff:
    """What one patch does to one file.

    Attributes:
        path: Relative to the folder that holds the package, with slashes.
        is_new: True if the patch makes the file.
        hunks: In the order of the file.
    """

    path: str
    is_new: bool
    hunks: tuple[Hunk, ...]

    def apply(self, original: bytes | None) -> bytes:
        """Return the patched content.

        Args:
            original: Content before, None if there is no such file.

        Raises:
            PatchError: The content is not what the patch was made for.
        """
        if (original is None) != self.is_new:
            problem = "exists already" if self.is_new else "does not exist"
            raise PatchError(f"{self.path} {problem}; the patch was not made for this tree")
        lines = _lines(original or b"")
        patched: list[bytes] = []
        num_done = 0
        for hunk in self.hunks:
            end = hunk.first_line + len(hunk.before)
            if hunk.first_line < num_done or tuple(lines[hunk.first_line : end]) != hunk.before:
                raise PatchError(
                    f"{self.path}: the lines from {hunk.first_line + 1} on are not those that "
                    "the patch was made for"
                )
            patched += [*lines[num_done : hunk.first_line], *hunk.after]
            num_done = end
        return b"".join([*patched, *lines[num_done:]])


def parse_patch(text: bytes) -> tuple[FileDiff, ...]:
    """Read a patch; what stands before the first ``diff --git`` is its message.

    Raises:
        PatchError: It is no patch, is cut short, or asks for more than changed and new text.
    """
    reader = _Reader(text)
    while reader.line and not reader.line.startswith(b"diff --git "):
        reader.advance()
    found = []
    while reader.line and reader.line != _SIGNATURE:
        found.append(_read_file(reader))
    if not found:
        raise PatchError("the patch changes no file")
    return tuple(found)


class _Reader:
    """The lines of a patch, one at a time; an empty line stands for the end."""

    def __init__(self, text: bytes) -> None:
        self._lines = iter(_lines(text))
        self._number = 0
        self.line = b""
        self.advance()

    def advance(self) -> bytes:
        """Go to the next line; return the one left behind."""
        left, self.line = self.line, next(self._lines, b"")
        self._number += 1
        return left

    def error(self, expected: str) -> PatchError:
        found = self.line.decode("utf-8", "replace").rstrip("\n") or "nothing"
        return PatchError(f"line {self._number} of the patch: expected {expected}, got {found!r}")


def _read_file(reader: _Reader) -> FileDiff:
    match = _FILE.fullmatch(reader.line)
    if not match or match[1] != match[2]:
        raise reader.error("'diff --git a/PATH b/PATH' with one PATH")
    path = _safe_path(match[1])
    reader.advance()
    is_new = reader.line == _NEW_FILE
    if is_new:
        reader.advance()
    if reader.line.startswith(b"index "):
        reader.advance()
    before = b"--- /dev/null\n" if is_new else b"--- a/" + match[1] + b"\n"
    for expected in (before, b"+++ b/" + match[1] + b"\n"):
        if reader.line != expected:
            raise reader.error(repr(expected.decode().rstrip()))
        reader.advance()
    return FileDiff(path, is_new, tuple(_read_hunks(reader)))


def _read_hunks(reader: _Reader) -> Iterator[Hunk]:
    if not reader.line.startswith(b"@@"):
        raise reader.error("a hunk")
    while reader.line.startswith(b"@@"):
        match = _HUNK.match(reader.line)
        if not match:
            raise reader.error("'@@ -LINE,COUNT +LINE,COUNT @@'")
        num_before, num_after = (1 if match[i] is None else int(match[i]) for i in (2, 4))
        # A hunk without lines before names the line that it goes behind.
        first_line = int(match[1]) - (1 if num_before else 0)
        reader.advance()
        yield Hunk(first_line, *_read_lines(reader, num_before, num_after))


def _read_lines(
    reader: _Reader, num_before: int, num_after: int
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    before: list[bytes] = []
    after: list[bytes] = []
    while len(before) < num_before or len(after) < num_after:
        kind = reader.line[:1]
        if kind not in {b" ", b"-", b"+"} or not reader.line.endswith(b"\n"):
            raise reader.error("a line of the hunk")
        line = reader.advance()[1:]
        if reader.line.startswith(_NO_NEWLINE):
            reader.advance()
            line = line.removesuffix(b"\n")
        if kind != b"+":
            before.append(line)
        if kind != b"-":
            after.append(line)
    if (len(before), len(after)) != (num_before, num_after):
        raise reader.error("as many lines as the hunk announced")
    return tuple(before), tuple(after)


def _safe_path(raw: bytes) -> str:
    """Return a path that cannot leave the folder it is relative to."""
    path = PurePosixPath(raw.decode())
    if path.is_absolute() or ".." in path.parts:
        raise PatchError(f"the patch names {str(path)!r}; paths must stay inside the package")
    return str(path)


def _lines(content: bytes) -> list[bytes]:
    """Split after each newline, and nowhere else."""
    return list(io.BytesIO(content))
