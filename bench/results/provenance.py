"""What a result was measured with: commit, versions, machine, command.

Addresses of this machine stay out, so that a result file can be published as it is.
"""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("sglang", "sglang-flowprefill", "torch", "transformers", "numpy", "aiohttp")
_ABSOLUTE_PATH = re.compile(r"(^|[=\s])~?/\S*/")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Everything about a measurement that is not its configuration.

    Attributes:
        measured_at: UTC, ISO 8601.
        commit: Of the repository that holds this bench, None outside of one.
        is_dirty: Whether the work tree differed from it; None without a commit.
        command: As typed, without folders.
        versions: Of Python and of the packages that matter; None for one not installed.
        hardware: Processor, cores that this process may use, memory.
    """

    measured_at: str
    commit: str | None
    is_dirty: bool | None
    command: str
    versions: dict[str, str | None]
    hardware: dict[str, str | int | float]


def provenance() -> Provenance:
    """Describe this process, its code and its machine."""
    commit = _git("rev-parse", "HEAD")
    return Provenance(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit,
        is_dirty=None if commit is None else bool(_git("status", "--porcelain")),
        command=" ".join(without_folders(["python", "-m", "bench", *sys.argv[1:]])),
        versions={
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        hardware={
            "cpu_model": _cpu_model(),
            "num_cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
        },
    )


def without_folders(arguments: Sequence[str]) -> list[str]:
    """Shorten absolute paths in command line arguments to their last part.

    >>> without_folders(["--trace", "/a/b/t.csv", "--out=/c/d", "x/y", "--rate=1"])
    ['--trace', 't.csv', '--out=d', 'x/y', '--rate=1']
    """
    return [_ABSOLUTE_PATH.sub(r"\1", argument) for argument in arguments]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(Path(__file__).parent), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
