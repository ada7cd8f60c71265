"""``python -m sglang_flowprefill patch`` on the installed SGLang's copy of what it touches."""

import shutil
import subprocess
import sys

import pytest

from sglang_flowprefill.__main__ import main
from sglang_flowprefill.patching import find_installation, patch_set_for


@pytest.fixture
def target(tmp_path):
    """The files of the installed wheel that patches touch, and its record."""
    installed = find_installation()
    record = f"sglang-{installed.version}.dist-info/METADATA"
    paths = [change.path for change in patch_set_for(installed.version).changes]
    for path in [*paths, "sglang/__init__.py", record]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(installed.root / path, tmp_path / path)
    return tmp_path


def test_status_ends_with_what_it_found(target, capsys):
    """Clean 3, applied 0, modified 5, for scripts; every file by name for people."""
    assert main(["patch", "status", "--target", str(target)]) == 3
    assert main(["patch", "apply", "--target", str(target)]) == 0
    assert main(["patch", "status", "--target", str(target)]) == 0
    io_struct = target / "sglang/srt/managers/io_struct.py"
    io_struct.write_bytes(io_struct.read_bytes() + b"#\n")
    capsys.readouterr()
    assert main(["patch", "status", "--target", str(target)]) == 5
    printed = capsys.readouterr().out
    assert "modified  sglang/srt/managers/io_struct.py" in printed
    assert "patched   sglang/srt/plugins/__init__.py" in printed


def test_cut_short_is_its_own_status(target, capsys):
    """A script sees that something is to be finished."""
    (target / ".sglang-flowprefill").mkdir()
    assert main(["patch", "status", "--target", str(target)]) == 4
    assert "apply finishes it, revert undoes it" in capsys.readouterr().out


def test_check_shows_reasons_and_diffs_and_touches_nothing(target, capsys):
    """What it prints is a patch that others can apply."""
    before = sorted(path for path in target.rglob("*"))
    assert main(["patch", "check", "--target", str(target)]) == 0
    printed = capsys.readouterr().out
    assert sorted(path for path in target.rglob("*")) == before
    assert "+    ttft_slo_ms: Optional[StrictFloat] = field(default=None, kw_only=True)" in printed
    for patch in patch_set_for(find_installation().version).patches:
        assert patch.why in printed
    assert "nothing was changed now" in printed


def test_refusal_is_one_message_and_status_1(target, capsys):
    """No traceback."""
    (target / "sglang/srt/plugins/__init__.py").write_text("edited = 1\n")
    for action in ("check", "apply", "revert"):
        assert main(["patch", action, "--target", str(target)]) == 1
        assert "sglang/srt/plugins/__init__.py is modified" in capsys.readouterr().err


def test_release_without_patches_is_refused(target, capsys):
    """It says for which there are some."""
    [record] = target.glob("*.dist-info")
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0.0.1\n")
    assert main(["patch", "status", "--target", str(target)]) == 1
    assert "no patches for SGLang 0.0.1; there are for: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "problem"),
    [("sglang", "holds no package sglang"), ("record", "has no sglang-*.dist-info")],
)
def test_folder_without_sglang_is_refused(target, capsys, name, problem):
    """The package and the record of its version are both needed."""
    shutil.rmtree(target / "sglang" if name == "sglang" else next(target.glob("*.dist-info")))
    assert main(["patch", "apply", "--target", str(target)]) == 1
    assert problem in capsys.readouterr().err


def test_a_copy_in_front_of_the_environment_is_what_is_found(target):
    """What Python would import is what is patched, and SGLang is not imported for that."""
    program = (
        "import sys; from sglang_flowprefill.__main__ import main; "
        "status = main(['patch', 'status']); print('sglang' in sys.modules, status)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert lines[0].endswith(f"in {target}")
    assert lines[-1] == "False 3"
