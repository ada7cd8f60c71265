"""A forward pass that stands still: same numbers, nothing left behind, misuse refused."""

import contextvars
import weakref
from contextlib import suppress

import greenlet
import pytest
import torch
from tiny_model import WIDTH, Engine, TinyModel

from sglang_flowprefill.errors import CursorError
from sglang_flowprefill.executor import Cursor
from sglang_flowprefill.testing import FakeEngineState

NUM_OPERATORS = TinyModel.num_operators


@pytest.fixture
def engine():
    """Return the tiny model; its checkpoint yields at every boundary."""
    return Engine()


def forward_of(engine, seed, num_tokens=5):
    """Return one forward pass with inputs of its own."""
    inputs = torch.randn(num_tokens, WIDTH, generator=torch.Generator().manual_seed(seed))
    return lambda: engine.model(inputs, float(seed))


def cursor_of(engine, run, name="cursor", **kwargs):
    """Return a cursor over this function."""
    return Cursor(run, engine.checkpoint, engine.state(name), **kwargs)


def reaching(engine, num_boundaries, body=lambda index: None):
    """Return a function that passes so many boundaries, calling ``body`` after each."""

    def run():
        for index in range(num_boundaries):
            engine.checkpoint.reach()
            body(index)
        return "done"

    return run


def watch(cursor):
    """Return weak references to a cursor and its greenlet."""
    return [weakref.ref(cursor), weakref.ref(cursor._greenlet)]


# ---- results ----


def test_suspended_at_every_boundary_with_others_in_between_gives_the_same_bits(engine):
    """Five forward passes in lockstep, and a plain one at every turn, equal five plain runs."""
    lengths = {seed: seed + 2 for seed in range(5)}
    expected = {seed: forward_of(engine, seed, n)() for seed, n in lengths.items()}
    cursors = {
        seed: cursor_of(engine, forward_of(engine, seed, n), str(seed))
        for seed, n in lengths.items()
    }
    unfinished = list(cursors.values())
    while unfinished:
        unfinished = [cursor for cursor in unfinished if not cursor.resume()]
        assert torch.equal(forward_of(engine, 0, lengths[0])(), expected[0])
    for seed, cursor in cursors.items():
        assert torch.equal(cursor.result, expected[seed])
        assert cursor.num_boundaries == cursor.num_suspensions == NUM_OPERATORS


@pytest.mark.parametrize("boundary", range(NUM_OPERATORS))
def test_suspended_once_gives_the_same_bits(engine, boundary):
    """Wherever it stops, and whatever runs meanwhile."""
    expected = forward_of(engine, 1)()
    cursor = cursor_of(engine, forward_of(engine, 1))
    for _ in range(boundary + 1):
        assert not cursor.resume()
    forward_of(engine, 2, num_tokens=9)()
    engine.wants_control = False
    assert cursor.resume()
    assert torch.equal(cursor.result, expected)


def test_without_interruption_it_runs_through(engine):
    """Nobody wants control: one resume, no suspension, every boundary counted."""
    engine.wants_control = False
    cursor = cursor_of(engine, forward_of(engine, 1))
    assert cursor.resume()
    assert (cursor.num_boundaries, cursor.num_suspensions) == (NUM_OPERATORS, 0)


def test_not_preemptible_runs_through(engine):
    """Boundaries are counted only, whoever wants control."""
    cursor = cursor_of(engine, forward_of(engine, 1), is_preemptible=False)
    assert cursor.resume()
    assert (cursor.num_boundaries, cursor.num_suspensions) == (NUM_OPERATORS, 0)


def test_a_suspended_cursor_may_be_told_to_run_through(engine):
    """What draining does: the rest goes in one piece."""
    cursor = cursor_of(engine, forward_of(engine, 1))
    assert not cursor.resume()
    cursor.is_preemptible = False
    assert cursor.resume()
    assert cursor.num_suspensions == 1


def test_boundaries_outside_a_cursor_do_nothing(engine):
    """Decode steps and warm-up share the hooked model."""
    forward_of(engine, 1)()
    assert engine.checkpoint.cursor is None
    assert not engine.switches


def test_a_result_may_be_none(engine):
    """No result is not the same as not finished."""
    cursor = cursor_of(engine, lambda: None)
    assert cursor.resume()
    assert cursor.result is None


# ---- state around the switch ----


def test_engine_state_is_entered_and_left_in_pairs(engine):
    """Every entry is left before the next, also at the end and at a cancellation."""
    first = cursor_of(engine, reaching(engine, 2), "first")
    second = cursor_of(engine, reaching(engine, 2), "second")
    for step in (first.resume, second.resume, first.resume, second.cancel, first.resume):
        step()
    names = ["first", "second", "first", "second", "first"]
    assert engine.switches == [(way, name) for name in names for way in ("enter", "leave")]


def test_each_side_finds_its_own_globals(engine):
    """The scheduler never sees a forward pass's globals, nor the other way round."""
    seen = []

    def run():
        seen.append(dict(engine.globals))
        engine.globals["owner"] = "cursor"
        engine.checkpoint.reach()
        seen.append(dict(engine.globals))

    cursor = cursor_of(engine, run)
    cursor.resume()
    assert engine.globals == {"owner": "scheduler"}
    engine.globals["owner"] = "scheduler, later"
    cursor.resume()
    assert engine.globals == {"owner": "scheduler, later"}
    assert seen == [{}, {"owner": "cursor"}]


def test_the_checkpoint_knows_who_is_running(engine):
    """Only between entry and exit of a slice is there a running cursor."""
    seen = []
    cursor = cursor_of(
        engine, reaching(engine, 1, lambda _: seen.append(engine.checkpoint.cursor is cursor))
    )
    while not cursor.resume():
        assert engine.checkpoint.cursor is None
    assert seen == [True]
    assert engine.checkpoint.cursor is None


def test_context_variables_follow_the_cursor(engine):
    """It starts with its creator's, keeps its own across suspensions, and leaks none."""
    variable = contextvars.ContextVar("variable")
    variable.set("creator")
    seen = []

    def run():
        seen.append(variable.get())
        variable.set("cursor")
        engine.checkpoint.reach()
        seen.append(variable.get())

    cursor = cursor_of(engine, run)
    variable.set("scheduler")
    cursor.resume()
    assert variable.get() == "scheduler"
    variable.set("scheduler, later")
    cursor.resume()
    assert seen == ["creator", "cursor"]
    assert variable.get() == "scheduler, later"


def test_a_cursor_may_be_resumed_from_another_stack(engine):
    """Control returns to whoever resumed it last, not to who started it."""
    cursor = cursor_of(engine, reaching(engine, 2))
    assert not cursor.resume()
    assert greenlet.greenlet(cursor.resume).switch() is False
    assert cursor.resume()


# ---- errors ----


@pytest.mark.parametrize("boundary", range(3))
def test_exceptions_come_out_of_resume(engine, boundary):
    """In whatever slice they happen; afterwards the cursor is dead and nobody is running."""

    def fail_at(index):
        if index == boundary:
            raise ZeroDivisionError("inside")

    cursor = cursor_of(engine, reaching(engine, 3, fail_at))
    for _ in range(boundary + 1):
        assert not cursor.resume()
    with pytest.raises(ZeroDivisionError, match="inside"):
        cursor.resume()
    assert not cursor.is_alive
    assert not cursor.is_finished
    assert engine.checkpoint.cursor is None
    assert engine.switches[-1] == ("leave", "cursor")


def test_finished_cursor_cannot_be_resumed(engine):
    """Running a prefill twice would write its KV twice."""
    cursor = cursor_of(engine, lambda: 1)
    cursor.resume()
    with pytest.raises(CursorError, match="cannot be resumed"):
        cursor.resume()
    assert cursor.result == 1


def test_cancelled_cursor_cannot_be_resumed(engine):
    """Its memory belongs to somebody else by now."""
    cursor = cursor_of(engine, reaching(engine, 1))
    cursor.cancel()
    with pytest.raises(CursorError, match="cannot be resumed"):
        cursor.resume()


@pytest.mark.parametrize("num_resumes", [0, 1])
def test_unfinished_cursor_has_no_result(engine, num_resumes):
    """Neither before the start nor in suspension."""
    cursor = cursor_of(engine, reaching(engine, 1))
    for _ in range(num_resumes):
        cursor.resume()
    with pytest.raises(CursorError, match="no result"):
        _ = cursor.result


@pytest.mark.parametrize("misuse", [Cursor.resume, Cursor.cancel])
@pytest.mark.parametrize("target", ["itself", "another"])
def test_a_running_cursor_switches_nobody(engine, misuse, target):
    """Only the scheduler's side switches; the running cursor stays the running one."""
    engine.wants_control = False
    cursors = {"another": cursor_of(engine, reaching(engine, 1), "another")}

    def run():
        with pytest.raises(CursorError, match="running forward pass"):
            misuse(cursors[target])
        assert engine.checkpoint.cursor is cursors["itself"]

    cursors["itself"] = cursor_of(engine, run, "itself")
    assert cursors["itself"].resume()
    assert cursors["another"].resume()
    assert engine.globals == {"owner": "scheduler"}


# ---- cancellation ----


@pytest.mark.parametrize("num_suspensions", range(NUM_OPERATORS + 1))
def test_cancelled_anywhere_it_unwinds_and_lets_go(engine, num_suspensions):
    """At every boundary, and before the start: clean-up runs, tensors and greenlet are freed."""
    unwound = []
    inputs = torch.randn(3, WIDTH)
    tensor = weakref.ref(inputs)

    def forward(inputs):
        try:
            return engine.model(inputs, 0.0)
        finally:
            unwound.append(dict(engine.globals))

    cursor = cursor_of(engine, lambda inputs=inputs: forward(inputs))
    del inputs
    for _ in range(num_suspensions):
        assert not cursor.resume()
    cursor.cancel()
    assert unwound == [{"position_shift": 0.0}] * min(num_suspensions, 1)
    assert engine.globals == {"owner": "scheduler"}
    assert not cursor.is_alive
    assert not cursor.is_finished
    assert tensor() is None
    watched = watch(cursor)
    del cursor
    assert [reference() for reference in watched] == [None, None]


def test_cancelling_what_has_ended_does_nothing(engine):
    """Aborts race with completions."""
    cursor = cursor_of(engine, lambda: 1)
    cursor.resume()
    switches = list(engine.switches)
    cursor.cancel()
    assert (cursor.result, engine.switches) == (1, switches)


def test_exception_of_the_clean_up_comes_out_of_cancel(engine):
    """It is not swallowed, and the cursor is dead all the same."""

    def run():
        try:
            engine.checkpoint.reach()
        finally:
            raise ZeroDivisionError("clean-up")

    cursor = cursor_of(engine, run)
    cursor.resume()
    with pytest.raises(ZeroDivisionError, match="clean-up"):
        cursor.cancel()
    assert not cursor.is_alive
    assert engine.checkpoint.cursor is None


def test_a_forward_pass_that_will_not_be_cancelled_is_reported(engine):
    """Code that swallows the unwinding and runs on would keep memory that was given away."""

    def run():
        try:
            engine.checkpoint.reach()
        except greenlet.GreenletExit:
            engine.checkpoint.reach()

    cursor = cursor_of(engine, run)
    cursor.resume()
    with pytest.raises(CursorError, match="swallowed GreenletExit"):
        cursor.cancel()
    cursor.cancel()
    assert not cursor.is_alive


@pytest.mark.parametrize("life", ["finished", "failed"])
def test_what_has_ended_leaves_nothing_behind(engine, life):
    """Without the garbage collector's help: a server has millions of these."""

    def fail(_index):
        if life == "failed":
            raise ZeroDivisionError

    cursor = cursor_of(engine, reaching(engine, 2, fail))
    watched = watch(cursor)
    with suppress(ZeroDivisionError):
        while not cursor.resume():
            pass
    del cursor
    assert [reference() for reference in watched] == [None, None]


def test_fake_engine_state_swaps_like_the_real_one():
    """The fake that these tests rely on starts a cursor clean and keeps both sides apart."""
    engine_globals, log = {"side": "scheduler"}, []
    state = FakeEngineState(engine_globals, log)
    snapshots = []
    for switch in (state.enter, state.leave, state.enter, state.leave):
        switch()
        snapshots.append(dict(engine_globals))
        engine_globals["side"] = engine_globals.get("side", "cursor")
    scheduler, cursor = {"side": "scheduler"}, {"side": "cursor"}
    assert snapshots == [{}, scheduler, cursor, scheduler]
    assert [way for way, _ in log] == ["enter", "leave"] * 2
