"""Where this package keeps what it can make again: models, profiles, compiled kernels.

Several processes, containers and users may share the folder: files are replaced in one step from a
name that nobody else has, and code is run only if nobody else can have written it.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CACHE_VARIABLE: Final = "SGLANG_FLOWPREFILL_CACHE"


def cache_folder() -> Path:
    """Return this package's cache folder, which need not exist."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sglang-flowprefill"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; what is written there replaces ``path`` when the block ends.

    Nobody ever sees a half-written file. If the block raises, ``path`` stays as it is.

    Raises:
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        yield written
        written.replace(path)


def require_trusted(path: Path) -> None:
    """Check that nobody but this user and root can have written a file or folder.

    Raises:
        PermissionError: Somebody else owns it or may write it; or it is a link.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise PermissionError(f"{path} is a link: remove it")
    if found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(
            f"{path} belongs to user {found.st_uid}: remove it, or choose another folder with "
            f"{CACHE_VARIABLE}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} can be written by others: chmod go-w it, or remove it")
