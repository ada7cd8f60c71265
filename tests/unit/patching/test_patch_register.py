"""The register tells the truth about the patches that are shipped."""

import pytest
import toy_sglang as toy

from sglang_flowprefill.errors import PatchError
from sglang_flowprefill.patching import (
    TreeState,
    find_installation,
    patch_set_for,
    read_register,
    status_of,
)
from sglang_flowprefill.patching.register import shipped_register

FOLDER = shipped_register()
PATCHES = read_register(FOLDER)
TARGETS = sorted({patch.target for patch in PATCHES})


def test_every_patch_is_registered_and_every_entry_has_its_patch():
    """No patch without a reason, no reason without a patch."""
    on_disk = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.patch")}
    assert {patch.file for patch in PATCHES} == on_disk
    assert len(PATCHES) == len(on_disk)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.file)
def test_entry_says_what_why_and_how_long(patch):
    """Every field is filled in, and the patch lies in the folder of its release."""
    for field in ("why", "how", "upstream", "remove_when"):
        assert len(getattr(patch, field)) > 5, field
    assert patch.upstream == "not sent" or patch.upstream.startswith("https://")
    assert patch.file.startswith(f"{patch.target}/")
    for change in patch.files:
        assert change.path.startswith("sglang/")
        assert all(len(value) == 64 for value in (change.before or change.after, change.after))
        assert patch.diffs[change.path].is_new is (change.before is None)


@pytest.mark.parametrize("target", TARGETS)
def test_hashes_of_a_set_form_a_chain(target):
    """A later patch takes what the earlier ones make."""
    assert patch_set_for(target).changes


def test_hashes_are_those_of_the_installed_wheel():
    """The installed SGLang is pristine, and the set makes of it what the register promises."""
    installation = find_installation()
    patch_set = patch_set_for(installation.version)
    assert status_of(installation, patch_set).inspection.state is TreeState.CLEAN
    for change in patch_set.changes:
        original = None if change.before is None else (installation.root / change.path).read_bytes()
        compile(patch_set.patched(change.path, original), change.path, "exec")


def test_unknown_release_is_told_the_known_ones():
    """The message names what there is."""
    with pytest.raises(PatchError, match=r"no patches for SGLang 0\.0\.1; .*0\.5\.23"):
        patch_set_for("0.0.1")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('why = "w"\n', "", "missing or unknown: why"),
        ('why = "w"\n', 'why = "w"\nmore = 1\n', "missing or unknown: more"),
        (f'path = "{toy.ONCE}"', 'path = "sglang/other.py"', "not those that the patch touches"),
    ],
)
def test_wrong_entry_is_refused_by_name(tmp_path, old, new, problem):
    """A register that does not fit its patches stops everything."""
    register = toy.make_register(tmp_path) / "register.toml"
    register.write_text(register.read_text().replace(old, new, 1))
    with pytest.raises(PatchError, match=problem):
        patch_set_for(toy.VERSION, tmp_path)


def test_broken_chain_is_refused(tmp_path):
    """A set whose patches do not follow from each other has no changes to speak of."""
    register = toy.make_register(tmp_path) / "register.toml"
    head, tail = register.read_text().split('[[patch]]\nfile = "9.9.1/0002')
    before = tail.index("before = ") + len('before = "')
    tail = tail[:before] + "0" * 64 + tail[before + 64 :]
    register.write_text(f'{head}[[patch]]\nfile = "9.9.1/0002{tail}')
    with pytest.raises(PatchError, match="is not what the patches before make"):
        _ = patch_set_for(toy.VERSION, tmp_path).changes


def test_patch_that_makes_something_else_is_refused(tmp_path):
    """What is written to the disk is what the register promises."""
    patch = toy.make_register(tmp_path) / toy.VERSION / "0001-first.patch"
    patch.write_text(patch.read_text().replace("+load = True", "+load = None"))
    original = toy.ORIGINAL[toy.TWICE].encode()
    with pytest.raises(PatchError, match=r"register\.toml promises"):
        patch_set_for(toy.VERSION, tmp_path).patched(toy.TWICE, original)
