"""Random suspensions of several forward passes, against the same ones run through."""

import contextvars
from itertools import cycle

from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_flowprefill.executor import Checkpoint, Cursor
from sglang_flowprefill.testing import FakeEngineState

CONTEXT = contextvars.ContextVar("context", default=0)

programs = st.lists(st.lists(st.integers(0, 99), max_size=8), min_size=1, max_size=5)
moves = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["resume"] * 4 + ["cancel"])))
yield_patterns = st.lists(st.booleans(), min_size=1, max_size=12)


def forward_pass(engine, checkpoint, operators, unwound):
    """Return a function whose result depends on every global it has, at every operator."""

    def run():
        engine["hidden"] = 1
        CONTEXT.set(1)
        try:
            for operator in operators:
                checkpoint.reach()
                engine["hidden"] = engine["hidden"] * 31 + operator
                CONTEXT.set(CONTEXT.get() * 37 + engine["hidden"])
        finally:
            unwound.append(operators)
        return engine["hidden"], CONTEXT.get()

    return run


def run_through(operators):
    """Return the result of an undisturbed run."""
    return contextvars.Context().run(forward_pass({}, Checkpoint(lambda: False), operators, []))


@settings(max_examples=200, deadline=None)
@given(programs, moves, yield_patterns)
def test_any_interleaving_gives_the_results_of_undisturbed_runs(programs, moves, pattern):
    """Whatever is suspended, resumed or cancelled where: the others do not notice."""
    engine, switches, unwound = {"hidden": "scheduler"}, [], []
    wants_control = cycle(pattern)
    checkpoint = Checkpoint(lambda: next(wants_control))
    cursors = [
        Cursor(
            forward_pass(engine, checkpoint, operators, unwound),
            checkpoint,
            FakeEngineState(engine, switches),
        )
        for operators in programs
    ]
    for index, move in moves:
        cursor = cursors[index % len(cursors)]
        if cursor.is_alive:
            getattr(cursor, move)()
        assert engine == {"hidden": "scheduler"}
        assert CONTEXT.get() == 0
    for cursor, operators in zip(cursors, programs, strict=True):
        while cursor.is_alive:
            cursor.resume()
        if cursor.is_finished:
            assert cursor.result == run_through(operators)
            assert cursor.num_boundaries == len(operators)
        assert cursor.num_suspensions <= cursor.num_boundaries <= len(operators)
    num_begun = sum(cursor.is_finished or cursor.num_boundaries > 0 for cursor in cursors)
    assert len(unwound) == num_begun, "a forward pass that began has ended, once"
    assert [way for way, _ in switches] == ["enter", "leave"] * (len(switches) // 2)
