"""Apply and revert on a toy SGLang: all or nothing, and back to the very same files."""

import fcntl
import os
import shutil

import pytest
import toy_sglang as toy

from sglang_flowprefill.errors import PatchError
from sglang_flowprefill.patching import TreeState, apply, revert, status_of
from sglang_flowprefill.patching.rollback import FOLDER, Phase


def contents(installation):
    """Return the files that the patches touch, by path, without those that are not there."""
    paths = {path: installation.root / path for path in toy.PATCHED}
    return {name: path.read_text() for name, path in paths.items() if path.exists()}


def state_of(installation, patch_set):
    """Return the state of the tree."""
    return status_of(installation, patch_set).inspection.state


def test_apply_changes_every_file_and_keeps_its_mode(installation, patch_set):
    """All patches in their order, and a new file that looks like the others."""
    assert apply(installation, patch_set)
    assert contents(installation) == toy.PATCHED
    assert (installation.root / toy.ONCE).stat().st_mode & 0o777 == 0o640
    assert state_of(installation, patch_set) is TreeState.APPLIED


def test_apply_hides_modules_compiled_from_the_original(installation, patch_set):
    """One that is not checked against its source would hide the patch."""
    apply(installation, patch_set)
    assert not list((installation.root / "sglang/srt/__pycache__").iterdir())


def test_revert_leaves_the_very_same_files_and_nothing_else(installation, patch_set):
    """Inode, mode, times, content, compiled modules; those of the patched files are gone."""
    before = toy.snapshot(installation.root)
    apply(installation, patch_set)
    (installation.root / "sglang/srt/__pycache__/server.cpython-312.pyc").write_bytes(b"new")
    (installation.root / "sglang/srt/__pycache__/added.cpython-311.pyc").write_bytes(b"new")
    assert revert(installation, patch_set)
    assert toy.snapshot(installation.root) == before


def test_a_copy_that_shares_its_files_stays_as_it_is(installation, patch_set, tmp_path):
    """Installers that link files into environments share them; those are never written to."""
    other = tmp_path / "other"
    shutil.copytree(installation.root, other, copy_function=os.link)
    before = toy.snapshot(other)
    apply(installation, patch_set)
    assert toy.snapshot(other) == before


def test_apply_and_revert_are_idempotent(installation, patch_set):
    """A second time nothing happens, and it says so."""
    apply(installation, patch_set)
    before = toy.snapshot(installation.root)
    assert not apply(installation, patch_set)
    assert toy.snapshot(installation.root) == before
    revert(installation, patch_set)
    before = toy.snapshot(installation.root)
    assert not revert(installation, patch_set)
    assert toy.snapshot(installation.root) == before


@pytest.mark.parametrize("action", [apply, revert])
@pytest.mark.parametrize("is_patched", [False, True])
@pytest.mark.parametrize("content", ["edited = 1\n", None])
def test_modified_tree_is_refused_untouched(installation, patch_set, action, is_patched, content):
    """A file that is neither original nor patched is named, with its hashes and the remedy."""
    if is_patched:
        apply(installation, patch_set)
    path = installation.root / toy.TWICE
    path.unlink()
    if content is not None:
        path.write_text(content)
    before = toy.snapshot(installation.root)
    with pytest.raises(PatchError) as caught:
        action(installation, patch_set)
    message = str(caught.value)
    assert toy.snapshot(installation.root) == before
    assert toy.TWICE in message
    assert toy.ONCE not in message
    assert f"pip install --force-reinstall --no-deps sglang=={toy.VERSION}" in message
    change = next(change for change in patch_set.changes if change.path == toy.TWICE)
    assert change.before in message
    assert change.after in message


def test_reinstalled_sglang_is_clean_and_what_was_kept_is_stale(installation, patch_set):
    """After pip has put the originals back, revert removes what is left and apply starts anew."""
    apply(installation, patch_set)
    (installation.root / toy.NEW).unlink()
    toy.make_tree(installation.root)
    status = status_of(installation, patch_set)
    assert status.inspection.state is TreeState.CLEAN
    assert status.is_stale
    before = {
        name: traits
        for name, traits in toy.snapshot(installation.root).items()
        if not name.startswith(FOLDER)
    }
    assert apply(installation, patch_set)
    assert contents(installation) == toy.PATCHED
    revert(installation, patch_set)
    assert toy.snapshot(installation.root) == before


def test_revert_after_a_reinstall_also_removes_files_that_patches_made(installation, patch_set):
    """Pip does not know them and leaves them."""
    apply(installation, patch_set)
    toy.make_tree(installation.root)
    assert state_of(installation, patch_set) is TreeState.PARTLY
    assert revert(installation, patch_set)
    assert contents(installation) == toy.ORIGINAL
    assert not (installation.root / FOLDER).exists()


@pytest.mark.parametrize("is_lost", [True, False])
def test_revert_needs_the_originals(installation, patch_set, is_lost):
    """A lost or damaged original is said before anything is changed."""
    apply(installation, patch_set)
    original = installation.root / FOLDER / "originals" / toy.ONCE
    original.unlink()
    if not is_lost:
        original.write_text("damaged")
    before = toy.snapshot(installation.root)
    with pytest.raises(PatchError, match=f"originals are not kept in .*{toy.ONCE}"):
        revert(installation, patch_set)
    assert toy.snapshot(installation.root) == before


def test_half_a_set_applied_by_other_means_is_refused(installation, patch_set):
    """Without its original a file could not be given back, so the rest is not begun."""
    (installation.root / toy.ONCE).write_text(toy.PATCHED[toy.ONCE])
    with pytest.raises(PatchError, match="originals are not kept"):
        apply(installation, patch_set)
    assert state_of(installation, patch_set) is TreeState.PARTLY


def test_two_runs_exclude_each_other(installation, patch_set):
    """The second one says so and does nothing."""
    folder = os.open(installation.root, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        with pytest.raises(PatchError, match="another patch command is at work"):
            apply(installation, patch_set)
    finally:
        os.close(folder)
    assert apply(installation, patch_set)


def test_failing_file_system_leaves_something_to_finish_or_undo(installation, patch_set):
    """The error says what failed; nothing is half written."""
    before = toy.snapshot(installation.root)
    obstacle = installation.root / FOLDER / "staged"
    obstacle.parent.mkdir()
    obstacle.write_text("in the way")
    with pytest.raises(PatchError, match=r"staged.*run apply or revert again"):
        apply(installation, patch_set)
    status = status_of(installation, patch_set)
    assert status.phase is Phase.APPLYING
    assert status.is_interrupted
    assert contents(installation) == toy.ORIGINAL
    obstacle.unlink()
    revert(installation, patch_set)
    assert toy.snapshot(installation.root) == before


def test_damaged_journal_is_named(installation, patch_set):
    """It is never written half; whoever edited it learns what to do."""
    apply(installation, patch_set)
    (installation.root / FOLDER / "journal.json").write_text("{")
    with pytest.raises(PatchError, match=r"journal\.json is damaged"):
        revert(installation, patch_set)
