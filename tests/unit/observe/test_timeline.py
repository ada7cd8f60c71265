"""The trace file says what ran when, whatever happens to the server."""

import json
import logging
import resource
from contextlib import contextmanager
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_flowprefill.errors import ConfigError
from sglang_flowprefill.observe.timeline import BEFORE_FIRST_OPERATOR, CHUNK_FINISHED, Timeline
from sglang_flowprefill.observe.timeline_reader import (
    DecodeSlice,
    OperatorSlice,
    RoundInstant,
    read_timeline,
)
from sglang_flowprefill.testing import ManualClock

START_S = 100.0


@pytest.fixture
def clock():
    """Stand at a time at which nothing began."""
    return ManualClock(START_S)


@pytest.fixture
def path(tmp_path):
    """Name a file that does not exist."""
    return tmp_path / "trace.json"


@pytest.fixture
def timeline(path, clock):
    """Start a trace."""
    timeline = Timeline(path, clock)
    yield timeline
    timeline.close()


def idle_round(timeline, now_s):
    """Tell of a round after which nothing is left to do."""
    timeline.on_round(
        now_s, events=["completion"], decision="wait", reason="-", num_waiting=0, num_unfinished=0
    )


def run_operators(timeline, clock, *names, batch_id=0, seconds=0.001):
    """Run one cursor from a resume through these operators and to its end."""
    timeline.on_resume(batch_id, "label", clock(), reason="first in policy order")
    for name in names:
        timeline.on_boundary(name)
        clock.advance(seconds)
    timeline.on_finish(batch_id, clock(), outcome="finished")


def events_of(path):
    """Parse a closed trace as any JSON reader does."""
    return json.loads(path.read_text())


def test_operators_fill_the_running_slice(timeline, clock, path):
    """From resume to end every moment belongs to one operator, the time before the first too."""
    timeline.on_resume(3, "r1, r2 (chat)", clock(), reason="first in policy order")
    clock.advance(0.002)
    timeline.on_boundary("norm")
    clock.advance(0.001)
    timeline.on_boundary("qkv")
    clock.advance(0.004)
    timeline.on_finish(3, clock(), outcome="finished")
    timeline.close()
    (slice_,) = read_timeline(path).running
    assert (slice_.batch_id, slice_.label, slice_.end) == (3, "r1, r2 (chat)", "finished")
    assert (slice_.start_s, slice_.end_s) == (100.0, 100.007)
    assert slice_.operators == (
        OperatorSlice(BEFORE_FIRST_OPERATOR, 100.0, 100.002),
        OperatorSlice("norm", 100.002, 100.003),
        OperatorSlice("qkv", 100.003, 100.007),
    )


def test_operator_at_which_a_cursor_yields_runs_when_it_continues(timeline, clock, path):
    """The boundary is before its operator: that one belongs to the next slice, once."""
    timeline.on_resume(0, "r", clock(), reason="first")
    timeline.on_boundary("norm")
    clock.advance(0.001)
    timeline.on_boundary("qkv")
    timeline.on_yield(0, clock(), causes=["arrival", "timer"], blocking_s=0.0005)
    clock.advance(1.0)
    timeline.on_resume(0, "r", clock(), reason="current prefill goes on")
    clock.advance(0.002)
    timeline.on_finish(0, clock(), outcome="finished")
    timeline.close()
    before, after = read_timeline(path).running
    assert (before.end, before.causes, before.blocking_s) == ("yield", ("arrival", "timer"), 0.0005)
    assert [operator.name for operator in before.operators] == [BEFORE_FIRST_OPERATOR, "norm"]
    assert after.operators == (OperatorSlice("qkv", 101.001, 101.003),)
    assert (after.reason, after.blocking_s) == ("current prefill goes on", None)


def test_rounds_and_decode_steps_are_on_tracks_of_their_own(timeline, path):
    """What was decided, why, after which events; and each decode step with its size."""
    timeline.on_round(
        100.5,
        events=["arrival", "completion"],
        decision="start r1",
        reason="first in policy order",
        num_waiting=2,
        num_unfinished=1,
    )
    timeline.on_decode(100.75, 101.0, num_requests=4)
    timeline.close()
    recorded = read_timeline(path)
    assert recorded.rounds == (
        RoundInstant(100.5, ("arrival", "completion"), "start r1", "first in policy order", 2, 1),
    )
    assert recorded.decodes == (DecodeSlice(100.75, 101.0, 4),)
    tracks = {e["args"]["name"]: e["tid"] for e in events_of(path) if e["name"] == "thread_name"}
    assert len(set(tracks.values())) == len(tracks) == 2


def test_tracks_are_named_once_for_each_cursor(timeline, clock, path):
    """A cursor that continues keeps its track and its name."""
    timeline.on_resume(7, "r7 (file)", clock(), reason="first")
    timeline.on_yield(7, clock(), causes=["arrival"], blocking_s=0.0)
    timeline.on_resume(7, "r7 (file)", clock(), reason="first")
    timeline.on_finish(7, clock(), outcome="finished")
    timeline.close()
    names = [e["args"]["name"] for e in events_of(path) if e["name"] == "thread_name"]
    assert names.count("prefill 7: r7 (file)") == 1


def test_counters_follow_waiting_and_suspended(timeline, clock, path):
    """The counters have a point wherever their value changes, and nowhere else."""
    timeline.on_resume(0, "r", clock(), reason="first")
    timeline.on_yield(0, clock(), causes=["arrival"], blocking_s=0.0)
    timeline.on_resume(1, "r", clock(), reason="first")
    timeline.on_finish(1, clock(), outcome="finished")
    timeline.on_finish(0, clock(), outcome="cancelled")
    idle_round(timeline, clock())
    idle_round(timeline, clock())
    timeline.close()
    points = [(e["name"], e["args"]["count"]) for e in events_of(path) if e["ph"] == "C"]
    assert points == [
        ("prefills suspended", 0),
        ("prefills suspended", 1),
        ("prefills suspended", 0),
        ("requests waiting", 0),
    ]


def test_cursor_cancelled_while_suspended_leaves_an_instant(timeline, clock, path):
    """Nothing ran at that moment, so its slices stay as they were."""
    timeline.on_resume(0, "r", clock(), reason="first")
    timeline.on_yield(0, clock(), causes=["abort"], blocking_s=0.0)
    timeline.on_finish(0, clock(), outcome="cancelled")
    timeline.on_finish(5, clock(), outcome="cancelled")
    timeline.close()
    assert [s.end for s in read_timeline(path).running] == ["yield"]
    instants = [e["name"] for e in events_of(path) if e["ph"] == "i"]
    assert instants == ["cancelled"], "batch 5 never ran"


def test_chunks_of_a_prompt_share_a_track(timeline, clock, path):
    """Between two forward passes a cursor stands suspended; each begins at its first operator."""
    for outcome in (CHUNK_FINISHED, "finished"):
        timeline.on_resume(0, "r", clock(), reason="first")
        timeline.on_boundary("norm")
        clock.advance(0.001)
        timeline.on_finish(0, clock(), outcome=outcome)
    timeline.close()
    first, second = read_timeline(path).running
    assert (first.end, second.end) == (CHUNK_FINISHED, "finished")
    assert second.operators[0].name == BEFORE_FIRST_OPERATOR
    events = events_of(path)
    assert [e["args"]["count"] for e in events if e["ph"] == "C"] == [0, 1, 0]
    assert len([e for e in events if e["name"] == "thread_name"]) == 3


def test_boundary_outside_a_prefill_is_not_written(timeline, clock, path):
    """Decode steps and the unwinding of a cancelled cursor pass boundaries too."""
    timeline.on_boundary("norm")
    run_operators(timeline, clock, "qkv")
    timeline.on_boundary("norm")
    timeline.close()
    (slice_,) = read_timeline(path).running
    assert [operator.name for operator in slice_.operators] == [BEFORE_FIRST_OPERATOR, "qkv"]


def test_every_line_is_one_event(timeline, clock, path):
    """Between the brackets each line but the last is an event and a comma, whatever its names."""
    run_operators(timeline, clock, *[f'"{i}"\n' for i in range(1000)])
    timeline.close()
    first, *lines, last = path.read_text().splitlines()
    assert (first, last) == ("[", "]")
    assert [json.loads(line.removesuffix(",")) for line in lines] == events_of(path)
    assert all(line.endswith("},") for line in lines[:-1])


def test_file_grows_while_a_prefill_runs(timeline, clock, path):
    """Events do not pile up in memory: all but the last few hundred are in the file."""
    timeline.on_resume(0, "r", clock(), reason="first")
    for i in range(5000):
        timeline.on_boundary(f"operator {i}")
    num_written = path.read_text().count("\n")
    assert 2 * 5000 - 600 < num_written < 2 * 5000


def test_idle_server_has_written_everything(timeline, clock, path):
    """A server that is killed while it has nothing to do leaves a trace that lacks nothing."""
    run_operators(timeline, clock, "norm", "qkv")
    idle_round(timeline, clock())
    (slice_,) = read_timeline(path).running
    assert len(slice_.operators) == 3
    assert events_of_unfinished(path)[-1]["name"] == "requests waiting"


def events_of_unfinished(path):
    """Parse as viewers do: the closing bracket may be missing."""
    return json.loads(path.read_text() + "]")


def test_slices_open_at_a_kill_are_left_out_by_the_reader(timeline, clock, path):
    """What had not ended has no end to report; what had is there."""
    run_operators(timeline, clock, "norm")
    timeline.on_resume(1, "r", clock(), reason="first")
    idle_round(timeline, clock())
    assert [s.batch_id for s in read_timeline(path).running] == [0]


def test_torn_last_line_is_ignored(timeline, clock, path):
    """A machine that lost power in the middle of a write loses that event only."""
    run_operators(timeline, clock, "norm")
    idle_round(timeline, clock())
    whole = read_timeline(path)
    with path.open("a") as file:
        file.write(',\n{"name":"running","ph"')
    assert read_timeline(path) == whole


def test_file_that_is_no_trace_is_refused_with_its_line(path):
    """A torn line in the middle is not what a kill leaves behind."""
    path.write_text("[\nprose\n]\n")
    with pytest.raises(ValueError, match="line 2: not a trace event"):
        read_timeline(path)


@pytest.mark.parametrize("name", ["missing/trace.json", ".", "/dev/full"])
def test_path_that_cannot_be_written_stops_the_start(name, tmp_path, clock):
    """The error names the flag and the path, before anything is served."""
    with pytest.raises(ConfigError, match="--flowprefill-trace: cannot be written"):
        Timeline(tmp_path / name, clock)


@contextmanager
def disk_with(num_bytes):
    """Let no file of this process grow beyond this size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_ends_the_trace_and_nothing_else(timeline, clock, path, caplog):
    """One warning; what is in the file is whole; all later calls pass quietly."""
    with disk_with(50_000), caplog.at_level(logging.WARNING):
        for batch_id in range(20):
            run_operators(timeline, clock, *"abcdefgh" * 10, batch_id=batch_id)
        idle_round(timeline, clock())
        timeline.close()
        timeline.close()
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    assert 10_000 < path.stat().st_size <= 50_000
    assert events_of_unfinished(path)
    assert 1 <= len(read_timeline(path).running) < 20


def test_older_trace_is_replaced(path, clock):
    """A restarted server does not append to the file of the one before."""
    for batch_id in (1, 2):
        timeline = Timeline(path, clock)
        run_operators(timeline, clock, "norm", batch_id=batch_id)
        timeline.close()
    assert [s.batch_id for s in read_timeline(path).running] == [2]


steps = st.lists(
    st.tuples(
        st.sampled_from(["boundary"] * 6 + ["suspend", "finish", "resume", "cancel", "decode"]),
        st.integers(0, 3),
        st.integers(0, 2000),
    ),
    max_size=60,
)


class Driver:
    """Makes a legal history from any list of steps, and remembers how long each cursor ran."""

    def __init__(self, path):
        self.clock = ManualClock(START_S)
        self.timeline = Timeline(path, self.clock)
        self.suspended, self.running, self.num_started = [], None, 0
        self.ran_us, self.boundaries, self.num_slices = {}, {}, 0

    def step(self, kind, which, duration_us):
        """Let time pass, then do this if it is legal now."""
        self.clock.advance(duration_us / 1e6)
        if self.running is not None:
            self.ran_us[self.running] += duration_us
        getattr(self, kind)(which, self.clock())

    def boundary(self, which, _now_s):
        """Pass a boundary, in a prefill or outside."""
        self.timeline.on_boundary(f"operator {which}")
        if self.running is not None:
            self.boundaries[self.running] += 1

    def resume(self, which, now_s):
        """Continue a suspended cursor or start a new one."""
        if self.running is not None:
            return
        is_new = which >= len(self.suspended)
        batch_id = self.num_started if is_new else self.suspended.pop(which)
        self.num_started += is_new
        self.ran_us.setdefault(batch_id, 0)
        self.boundaries.setdefault(batch_id, 0)
        self.running = batch_id
        self.timeline.on_resume(batch_id, f"r{batch_id}", now_s, reason="-")

    def suspend(self, _which, now_s):
        """Suspend what runs, at the boundary that it has just reached."""
        if self.running is None:
            return
        self.timeline.on_boundary("operator to come")
        self.timeline.on_yield(self.running, now_s, causes=["arrival"], blocking_s=0.0)
        self.suspended.append(self.running)
        self.running, self.num_slices = None, self.num_slices + 1

    def finish(self, _which, now_s):
        """End what runs."""
        if self.running is not None:
            self.timeline.on_finish(self.running, now_s, outcome="finished")
            self.running, self.num_slices = None, self.num_slices + 1

    def cancel(self, which, now_s):
        """Cancel a suspended cursor."""
        if which < len(self.suspended):
            self.timeline.on_finish(self.suspended.pop(which), now_s, outcome="cancelled")

    def decode(self, which, now_s):
        """Run a decode step between slices."""
        if self.running is None:
            self.clock.advance(0.001)
            self.timeline.on_decode(now_s, self.clock(), num_requests=which)


def assert_no_overlap(slices):
    """Each begins when the one before has ended, or later."""
    assert all(before.end_s <= after.start_s for before, after in pairwise(slices))
    assert all(slice_.start_s <= slice_.end_s for slice_ in slices)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps)
def test_slices_nest_and_add_up_for_any_history(path, history):
    """No two slices of a track overlap, operators fill their slice, and no time is lost."""
    driver = Driver(path)
    for step in history:
        driver.step(*step)
    driver.finish(0, driver.clock())
    driver.timeline.close()
    recorded = read_timeline(path)
    assert len(recorded.running) == driver.num_slices
    assert_no_overlap(recorded.running)
    assert_no_overlap(sorted([*recorded.running, *recorded.decodes], key=lambda s: s.start_s))
    ran_us = dict.fromkeys(driver.ran_us, 0)
    for slice_ in recorded.running:
        assert slice_.operators, "every moment belongs to an operator"
        assert_no_overlap(slice_.operators)
        assert slice_.operators[0].start_s == slice_.start_s
        assert slice_.operators[-1].end_s == slice_.end_s
        assert all(a.end_s == b.start_s for a, b in pairwise(slice_.operators))
        ran_us[slice_.batch_id] += round(1e6 * (slice_.end_s - slice_.start_s))
    # The manual clock adds binary fractions; the file has whole microseconds.
    for batch_id, microseconds in driver.ran_us.items():
        assert ran_us[batch_id] == pytest.approx(microseconds, abs=driver.num_slices)
    depth = dict.fromkeys({e["tid"] for e in events_of(path)}, 0)
    for event in events_of(path):
        depth[event["tid"]] += {"B": 1, "E": -1}.get(event["ph"], 0)
        assert 0 <= depth[event["tid"]] <= 2
    assert not any(depth.values())
