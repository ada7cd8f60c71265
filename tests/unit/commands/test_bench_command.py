"""``python -m sglang_flowprefill bench`` is ``python -m bench``, installed or not."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sglang_flowprefill.__main__ import main
from sglang_flowprefill.commands import bench as command

ROOT = Path(__file__).parents[3]


@pytest.fixture
def given(monkeypatch):
    """Replace the bench by one that notes its command line; return the notes."""
    seen = []
    monkeypatch.setattr(sys, "argv", ["flowprefill"])
    monkeypatch.setattr(command, "_bench_main", lambda: lambda: seen.append(sys.argv[1:]) or 3)
    return seen


@pytest.mark.parametrize(
    "arguments", [["load", "--rate", "1", "x"], ["--help"], ["compare", "--help"], []]
)
def test_arguments_reach_the_bench_as_they_are(given, arguments):
    """Options among them too, in their order; its exit status is the command's."""
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 3
    assert given == [arguments]


def test_a_missing_package_is_named(monkeypatch, capsys):
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, command._SHIPPED_AS, None)
    assert main(["bench"]) == 1
    error = capsys.readouterr().err
    assert "sglang-flowprefill[bench]" in error


def test_the_bench_runs_from_any_folder(tmp_path):
    """The installed package brings it along; no checkout has to be the working folder."""
    result = subprocess.run(
        [sys.executable, "-m", "sglang_flowprefill", "bench", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert "ablation" in result.stdout


def test_every_package_of_the_repository_ships():
    """One that is not listed would be missing from the wheel only."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    folders = {"bench": "sglang_flowprefill.bench", "kernels": "sglang_flowprefill.kernels"}
    folders["sglang_flowprefill"] = "sglang_flowprefill"
    present = {
        ".".join([name, *init.parent.relative_to(ROOT / folder).parts])
        for folder, name in folders.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert present <= listed
