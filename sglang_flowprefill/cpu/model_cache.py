"""A folder that is built once, all or nothing, and checked on each use.

Invariants:

* A folder under its final name is complete: it is built beside it and renamed.
* Its manifest holds the sha256 of every file, compared each time, so that neither a damaged
  disk nor an edited file is served without a word.
* One process builds; others wait for it and use its result. A killed builder leaves no lock and
  nothing that is ever used.
"""

import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sglang_flowprefill.errors import ModelConversionError

MANIFEST: Final = "manifest.json"


class ModelCacheError(ModelConversionError):
    """The cache folder cannot be written."""


def built_once(folder: Path, recipe: Mapping[str, str], build: Callable[[Path], None]) -> Path:
    """Return ``folder``, built or found complete and unchanged.

    Args:
        folder: Where the result lies; ``<folder>.partial`` and ``<folder>.lock`` are used too.
        recipe: What the result depends on. A folder built from another recipe is rebuilt.
        build: Fills the folder it is given, which does not exist yet.

    Raises:
        ModelCacheError: The folder cannot be made.
    """
    if not _problem(folder, recipe):  # no lock and no writing, for a cache shared read-only
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_builder(folder):
            problem = _problem(folder, recipe)  # another process may have built it meanwhile
            if problem:
                _rebuild(folder, recipe, build, problem)
    except OSError as error:
        raise ModelCacheError(
            f"cannot make {folder}: {error}. It needs up to 1 GB; SGLANG_FLOWPREFILL_CACHE "
            "chooses another place"
        ) from error
    return folder


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem(folder: Path, recipe: Mapping[str, str]) -> str:
    """Say why ``folder`` cannot be used; empty if it can."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["recipe"] != dict(recipe):
            return "it was made from something else"
        for name, sha256 in manifest["files"].items():
            if sha256_of(folder / name) != sha256:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error!r})"
    return ""


def _rebuild(
    folder: Path, recipe: Mapping[str, str], build: Callable[[Path], None], problem: str
) -> None:
    if folder.exists():
        print(f"Making {folder} again: {problem}.", file=sys.stderr, flush=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed builder: we hold its lock
    build(partial)
    files = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
    manifest = json.dumps({"recipe": dict(recipe), "files": files}, indent=2)
    (partial / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel frees it when the process ends, however it ends."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that makes {folder}.", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
