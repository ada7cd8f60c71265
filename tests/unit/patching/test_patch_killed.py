"""Killed at every single step, a run can be finished or undone."""

import os
import random
import signal
import stat
import sys

import pytest
import toy_sglang as toy

from sglang_flowprefill.patching import TreeState, apply, find_installation, revert, status_of

# What Python announces before it asks the file system to change something.
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "os.chown"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def run_killed(action, step):
    """Run an action in a child process and kill it before its nth change.

    A write is torn: a file counts as half written when the kill comes at its ``fsync``.

    Returns:
        False if the action ended before that step.
    """
    child = os.fork()
    if child == 0:
        try:
            _kill_before(step)
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _kill_before(step):
    num_left = step

    def count():
        nonlocal num_left
        num_left -= 1
        return num_left < 0

    def on_event(event, args):
        is_write = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        if (event in CHANGES or is_write) and count():
            os.kill(os.getpid(), signal.SIGKILL)

    def torn_fsync(descriptor):
        if count():
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                os.ftruncate(descriptor, status.st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = torn_fsync
    sys.addaudithook(on_event)


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch):
    """The machine is not switched off here: hundreds of runs need not wait for its disk."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def make_installation(tmp_path, patch_set):
    """Make toys, clean or patched, each with the snapshot of its clean state."""

    def make(name, *, is_patched):
        installation = find_installation(toy.make_tree(tmp_path / name))
        clean = toy.snapshot(installation.root)
        if is_patched:
            apply(installation, patch_set)
        return installation, clean

    return make


def require_recoverable(installation, patch_set, clean, *, by_apply):
    """Assert that a killed run is seen, and that it can be finished or undone."""
    status = status_of(installation, patch_set)
    assert status.inspection.state is not TreeState.MODIFIED
    if status.inspection.state is TreeState.PARTLY:
        assert status.is_interrupted
    if by_apply:
        apply(installation, patch_set)
        after = status_of(installation, patch_set)
        assert (after.inspection.state, after.is_interrupted) == (TreeState.APPLIED, False)
    revert(installation, patch_set)
    assert toy.snapshot(installation.root) == clean


@pytest.mark.parametrize("action", [apply, revert])
@pytest.mark.parametrize("by_apply", [True, False])
def test_killed_at_any_step(make_installation, patch_set, action, by_apply):
    """Before every change and inside every write; finished by apply, or undone by revert."""
    step = 0
    while True:
        installation, clean = make_installation(f"{step}", is_patched=action is revert)
        was_killed = run_killed(lambda: action(installation, patch_set), step)  # noqa: B023
        require_recoverable(installation, patch_set, clean, by_apply=by_apply)
        if not was_killed:
            break
        step += 1
    assert step > 20


def test_killed_again_and_again(make_installation, patch_set):
    """Whatever is killed while it recovers from whatever, in the end all is as it was."""
    draw = random.Random(5)
    for number in range(40):
        installation, clean = make_installation(f"{number}", is_patched=False)
        for _ in range(draw.randrange(2, 6)):
            action = draw.choice([apply, apply, revert])
            run_killed(lambda: action(installation, patch_set), draw.randrange(40))  # noqa: B023
        require_recoverable(installation, patch_set, clean, by_apply=draw.random() < 0.5)
