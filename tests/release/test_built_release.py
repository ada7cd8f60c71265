"""What ``make release-check`` has built: complete, and serving without the source beside it."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import sglang_flowprefill
from tests.integration import serving as harness

pytestmark = pytest.mark.release

ROOT = Path(__file__).parents[2]
VERSION = sglang_flowprefill.__version__
SHOW = "import sglang_flowprefill as f; print(f.__file__, f.__version__)"


@pytest.fixture(scope="module")
def wheel():
    """The one wheel, of this version."""
    (path,) = (ROOT / "dist").glob("*.whl")
    assert path.name == f"sglang_flowprefill-{VERSION}-py3-none-any.whl"
    return path


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory):
    """An environment with this one's packages, but with the wheel in place of the source.

    The editable install comes by a hook in a ``.pth`` file, and ``.pth`` files count only in an
    environment's own folder: a folder on the path by other means brings its packages alone.
    """
    folder = tmp_path_factory.mktemp("release") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    install = [str(python), "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, str(wheel)], check=True, cwd=folder)
    (own,) = folder.glob("lib/python*/site-packages")
    # After the environment's own packages, so that the wheel's metadata comes first.
    (own / "engine.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def names_in(wheel):
    """Return the files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_what_the_source_holds(wheel):
    """Every module, C++ source and data file of the package, and no other package beside it."""
    kinds = {".py", ".cpp", ".h", ".html", ".typed", ".toml", ".patch", ".json"}
    folders = {"sglang_flowprefill": "sglang_flowprefill", "kernels": "sglang_flowprefill/kernels"}
    wanted = {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside in folders.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in kinds
    }
    assert wanted - names_in(wheel) == set()
    tops = {name.partition("/")[0] for name in names_in(wheel)}
    assert tops == {"sglang_flowprefill", f"sglang_flowprefill-{VERSION}.dist-info"}


def test_the_wheel_names_plugin_and_licence(wheel):
    """Without its entry points SGLang would never hear of it."""
    names = names_in(wheel)
    info = f"sglang_flowprefill-{VERSION}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    with zipfile.ZipFile(wheel) as archive:
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert "[sglang.srt.plugins]\nflowprefill = " in entry_points
    assert "[sglang.srt.platforms]\nflowprefill = " in entry_points


def test_the_sdist_can_be_tested_and_documented():
    """It holds tests, bench, docs and locks beside the package."""
    (path,) = (ROOT / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "Makefile", "CHANGELOG.md", "LICENSE", "requirements/cpu.txt"}
    wanted |= {"tests/release/test_built_release.py", "bench/__main__.py", "docs/index.md"}
    assert wanted <= names
    assert not [name for name in names if name.endswith((".pyc", ".so"))]


def test_the_changelog_knows_this_version():
    """A version is written down there, or still to come under Unreleased."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {VERSION}" in text or "## Unreleased" in text


def test_the_wheel_serves(clean_python, tmp_path, monkeypatch):
    """Installed without the source, the launcher's server answers, with FlowPrefill on."""
    shown = subprocess.run(
        [str(clean_python), "-c", SHOW], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    place, version = shown.stdout.split()
    assert Path(place).is_relative_to(clean_python.parents[1])
    assert version == VERSION
    monkeypatch.chdir(tmp_path)  # the server inherits it: no source beside it
    monkeypatch.setattr(sys, "executable", str(clean_python))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with harness.serving("flowprefill", tmp_path) as server:
        answer = server.generate(harness.tokens(32, 1), 2)
        assert answer["meta_info"]["completion_tokens"] == 2
        assert server.statistics()["num_prefills"] >= 1
        assert Path(f"/proc/{server.process.pid}/cwd").readlink() == tmp_path
