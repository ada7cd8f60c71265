"""A cached folder is complete, unchanged, and built by one process only."""

import json
import threading
from pathlib import Path

import pytest

from sglang_flowprefill.cpu.model_cache import MANIFEST, ModelCacheError, built_once

RECIPE = {"source": "a"}


class Builder:
    """Writes two files and counts how often it was asked to."""

    def __init__(self) -> None:
        self.builds = 0

    def __call__(self, target: Path) -> None:
        """Fill ``target``."""
        self.builds += 1
        target.mkdir()
        (target / "weights").write_text("w" * 1000)
        (target / "config").write_text(f"build {self.builds}")


@pytest.fixture
def build() -> Builder:
    """Return a counting builder."""
    return Builder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where the result goes; its parent does not exist yet."""
    return tmp_path / "models" / "tiny"


def test_a_second_use_does_not_build(folder, build):
    """What is there and verified is returned as it is."""
    assert built_once(folder, RECIPE, build) == built_once(folder, RECIPE, build) == folder
    assert build.builds == 1
    assert sorted(path.name for path in folder.iterdir()) == ["config", MANIFEST, "weights"]


@pytest.mark.parametrize("damage", ["change", "remove", "manifest", "not json"])
def test_a_damaged_folder_is_rebuilt_and_said_so(folder, build, capsys, damage):
    """One changed byte, a lost file or a broken manifest lead to a new build, not to its use."""
    built_once(folder, RECIPE, build)
    match damage:
        case "change":
            (folder / "weights").write_text("w" * 999 + "x")
        case "remove":
            (folder / "weights").unlink()
        case "manifest":
            (folder / MANIFEST).unlink()
        case "not json":
            (folder / MANIFEST).write_text("[]")
    built_once(folder, RECIPE, build)
    assert build.builds == 2
    assert (folder / "weights").read_text() == "w" * 1000
    assert f"Making {folder} again" in capsys.readouterr().err


def test_another_recipe_is_another_build(folder, build):
    """A new converter or source never gets the old result."""
    built_once(folder, RECIPE, build)
    built_once(folder, {"source": "b"}, build)
    assert build.builds == 2
    assert json.loads((folder / MANIFEST).read_text())["recipe"] == {"source": "b"}


def test_the_rest_of_a_killed_build_is_thrown_away(folder, build):
    """A partial folder that a killed process left is neither used nor in the way."""
    partial = folder.with_name("tiny.partial")
    partial.mkdir(parents=True)
    (partial / "stale").write_text("half a file")
    built_once(folder, RECIPE, build)
    assert not (folder / "stale").exists()
    assert not partial.exists()


def test_a_failed_build_leaves_no_folder(folder):
    """The final name appears only when everything is written."""

    def fail(target: Path) -> None:
        target.mkdir()
        (target / "weights").write_text("some")
        raise ValueError("bad source")

    with pytest.raises(ValueError, match="bad source"):
        built_once(folder, RECIPE, fail)
    assert not folder.exists()


def test_two_builders_at_once_build_once(folder, build):
    """The second waits for the first and finds its result."""
    started, finish = threading.Event(), threading.Event()

    def slow(target: Path) -> None:
        started.set()
        assert finish.wait(10)
        build(target)

    first = threading.Thread(target=built_once, args=(folder, RECIPE, slow))
    second = threading.Thread(target=built_once, args=(folder, RECIPE, build))
    first.start()
    assert started.wait(10)
    second.start()
    finish.set()
    first.join(10)
    second.join(10)
    assert build.builds == 1
    assert (folder / MANIFEST).exists()


def test_a_cache_that_cannot_be_written_is_explained(tmp_path, build):
    """The error names the variable that chooses another place."""
    (tmp_path / "file").touch()
    with pytest.raises(ModelCacheError, match="SGLANG_FLOWPREFILL_CACHE"):
        built_once(tmp_path / "file" / "tiny", RECIPE, build)
