"""Where this package keeps what it can make again: models, profiles, compiled kernels."""

import os
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
