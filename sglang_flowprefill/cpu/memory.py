"""How much memory this process may still take: the machine's, or its container's if less."""

from pathlib import Path

import psutil

_CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Files of the limit and of what is used, of version 2 and of version 1."""


def available_memory_bytes(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that can be allocated before somebody is killed for them.

    Args:
        cgroup_root: Where this process's control group is mounted.
    """
    available = int(psutil.virtual_memory().available)
    for limit_file, used_file in _CGROUPS:
        try:
            limit = int((cgroup_root / limit_file).read_text(encoding="ascii"))
            used = int((cgroup_root / used_file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # not this version; or "max"
            continue
        available = min(available, max(limit - used, 0))
    return available
