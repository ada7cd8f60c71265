"""What the tests of the CPU engine share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run code in a fresh interpreter, whose imports a stand-in may spoil, and return stdout."""

    def run(code: str, *search_path: Path, **variables: str) -> str:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SGLANG_", "PYTHON"))
        }
        path = os.pathsep.join(map(str, (*search_path, REPOSITORY)))
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=inherited | {"PYTHONPATH": path} | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
