"""Environments with older releases of SGLang, made by ``make older``."""

import os
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from sglang_flowprefill.adapter import releases

REPOSITORY = Path(__file__).parents[2]
OLDER = [r.version for r in releases.RELEASES[:-1]]


@dataclass(frozen=True)
class Environment:
    """One environment, for a release that is not the one that the tests themselves run with."""

    version: str
    root: Path

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.root / "bin" / "python")

    @property
    def sglang(self) -> Path:
        """Its SGLang's source tree."""
        (tree,) = self.root.glob("lib/python3*/site-packages/sglang")
        return tree

    def fingerprint(self) -> dict[str, str]:
        """Hash every file of SGLang that is not derived from another."""
        files = (p for p in self.sglang.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {str(p.relative_to(self.sglang)): sha256(p.read_bytes()).hexdigest() for p in files}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"SGLANG_USE_CPU_ENGINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def patch(self, action: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m sglang_flowprefill patch``."""
        return self.run("-m", "sglang_flowprefill", "patch", action)


@pytest.fixture(params=OLDER)
def environment(request):
    """An environment whose SGLang is as its wheel brought it; reverted afterwards if need be."""
    root = REPOSITORY / ".venv-older" / request.param
    if not root.is_dir():
        pytest.skip(f"no environment with SGLang {request.param}: run make older")
    found = Environment(request.param, root)
    assert found.patch("status").returncode == 3, "not clean: python -m sglang_flowprefill patch"
    yield found
    if found.patch("status").returncode != 3:
        found.patch("revert")
