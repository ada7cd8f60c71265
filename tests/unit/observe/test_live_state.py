"""What a watcher is told of a scheduler, from what the event loop reports."""

import sys
import threading
from types import SimpleNamespace

import pytest

from sglang_flowprefill.api.state import RoundState
from sglang_flowprefill.core import (
    PredictionError,
    PrefillBatch,
    PrefillRequest,
    Slo,
    StatisticsRecorder,
)
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.observe.live_state import LiveState, Totals
from sglang_flowprefill.testing import ManualClock


def request(name, *, arrival_s=100.0, tokens=100, class_name="chat"):
    """One request with a second to its first token."""
    return PrefillRequest(name, arrival_s, Slo(1.0, class_name), tokens)


def cursor(batch_id, *requests):
    """A prefill in flight, without a model."""
    prefill = PrefillBatch(batch_id, requests, predicted_s=2.0, held_bytes=1000)
    execution = SimpleNamespace(num_boundaries=17)
    return SimpleNamespace(prefill=prefill, execution=execution, started_as=requests)


class Scheduler:
    """Drives a ``LiveState`` as the event loop does."""

    def __init__(self):
        self.clock = ManualClock(100.0)
        self.live = LiveState("s-edf", "operator", {"chat": 1000.0}, self.clock)
        self.recorder = StatisticsRecorder()

    def round(self, *waiting, num_decoding=0):
        """One round that found these waiting."""
        entry = RoundState(self.clock(), "arrival", "StartBatch", 0.001)
        self.live.on_round(entry, list(waiting), num_decoding)

    def resume(self, cursor):
        """Run a prefill from now on."""
        cursor.prefill.apply(BatchChange.RESUME, self.clock())
        self.live.on_resume(cursor, self.clock())

    def stop(self, cursor, *, blocking_s=0.002):
        """Suspend it."""
        cursor.prefill.apply(BatchChange.YIELD, self.clock())
        self.live.on_yield(cursor.prefill, self.clock(), blocking_s)

    def end(self, cursor, outcome="finished"):
        """Say that it, or a forward pass of it, has ended."""
        self.live.on_end(cursor.prefill, self.clock(), outcome)

    def snapshot(self):
        """Ask as a watcher would."""
        return self.live.snapshot(
            Totals(self.recorder.statistics(), {"chat": 3}, {"chat": 1}, {"other": 2})
        )


@pytest.fixture
def scheduler():
    """At second 100, idle."""
    return Scheduler()


def test_an_idle_scheduler_has_nothing_to_tell(scheduler):
    """Before the first request: no work, no history, no division by zero."""
    state = scheduler.snapshot()
    assert (state.num_waiting, state.prefills, state.slices, state.rounds) == (0, [], [], [])
    assert state.rounds_per_s == 0.0
    assert state.blocking.num_yields == 0
    assert state.prediction is None


def test_a_running_prefill_progresses_between_two_events(scheduler):
    """Its seconds grow while it runs, although nothing is reported."""
    one = cursor(1, request("a"))
    scheduler.resume(one)
    scheduler.clock.advance(0.5)
    (prefill,) = scheduler.snapshot().prefills
    assert (prefill.state, prefill.run_s, prefill.since_s) == ("running", 0.5, 100.0)
    assert prefill.slack_s == 0.5
    assert prefill.num_boundaries == 17


def test_a_suspended_prefill_stands_still_and_holds_memory(scheduler):
    """After the yield its seconds stay; the slice it ran is history; the memory is counted."""
    one = cursor(1, request("a"))
    scheduler.resume(one)
    scheduler.clock.advance(0.5)
    scheduler.stop(one)
    scheduler.clock.advance(0.25)
    state = scheduler.snapshot()
    (prefill,) = state.prefills
    assert (prefill.state, prefill.run_s, prefill.since_s) == ("suspended", 0.5, 100.5)
    assert state.suspended_bytes == 1000
    (ran,) = state.slices
    assert (ran.batch_id, ran.start_s, ran.end_s, ran.end) == (1, 100.0, 100.5, "yield")


def test_an_ended_prefill_is_history_only(scheduler):
    """It leaves the unfinished ones; a forward pass that is not its last does not."""
    one = cursor(1, request("a"))
    scheduler.resume(one)
    scheduler.end(one, "chunk finished")
    assert len(scheduler.snapshot().prefills) == 1
    scheduler.clock.advance(0.1)
    scheduler.live.on_resume(one, scheduler.clock())
    scheduler.end(one)
    state = scheduler.snapshot()
    assert state.prefills == []
    assert [ran.end for ran in state.slices] == ["chunk finished", "finished"]


def test_a_prefill_cancelled_while_suspended_adds_no_slice(scheduler):
    """Nothing ran, so nothing is drawn."""
    one = cursor(1, request("a"))
    scheduler.resume(one)
    scheduler.stop(one)
    scheduler.end(one, "cancelled")
    assert [ran.end for ran in scheduler.snapshot().slices] == ["yield"]


def test_who_has_been_started_waits_no_longer(scheduler):
    """The queue of the last round is shown without those that run since."""
    first, second = request("a"), request("b", class_name="other")
    scheduler.round(first, second, num_decoding=4)
    scheduler.resume(cursor(1, first))
    state = scheduler.snapshot()
    assert [entry.request_id for entry in state.waiting] == ["b"]
    assert state.num_waiting == 1
    assert state.num_decoding == 4


def test_a_long_queue_is_counted_whole_and_listed_in_part(scheduler):
    """A thousand waiting requests are one number and a hundred entries."""
    scheduler.round(*[request(str(n)) for n in range(1000)])
    state = scheduler.snapshot()
    assert (state.num_waiting, len(state.waiting)) == (1000, 100)
    assert state.classes[0].num_waiting == 1000


def test_every_class_that_was_seen_is_listed(scheduler):
    """Those of the class file and those that came without, each with its own counts."""
    scheduler.recorder.on_first_token(request("x", class_name="own"), 100.5)
    chat, own = scheduler.snapshot().classes
    assert (chat.name, chat.ttft_slo_ms, chat.num_arrived, chat.num_rejected) == (
        "chat",
        1000.0,
        3,
        1,
    )
    assert (own.name, own.ttft_slo_ms, own.num_finished, own.num_attained) == ("own", None, 1, 1)


def test_history_ends_after_ten_seconds_and_is_bounded(scheduler):
    """Old rounds go, and of very many only the last are kept; the rate is of those."""
    scheduler.round()
    scheduler.clock.advance(20.0)
    for _ in range(2000):
        scheduler.round()
        scheduler.clock.advance(0.001)
    state = scheduler.snapshot()
    assert len(state.rounds) == 500
    assert state.rounds[0].time_s > 121.0
    assert state.rounds_per_s == pytest.approx(1000.0, rel=0.01)


def test_blocking_time_is_given_in_percentiles(scheduler):
    """Of a hundred yields the median, the ninety-ninth and the last."""
    one = cursor(1, request("a"))
    for n in range(101):
        scheduler.resume(one)
        scheduler.stop(one, blocking_s=n / 1000)
    blocking = scheduler.snapshot().blocking
    assert (blocking.num_yields, blocking.p50_s, blocking.p99_s, blocking.max_s) == (
        101,
        0.050,
        0.099,
        0.100,
    )


def test_prediction_errors_are_passed_on(scheduler):
    """The last comparison of the predictor is shown."""
    scheduler.live.on_prediction(PredictionError(12, 0.08, -0.02))
    assert scheduler.snapshot().prediction.median_absolute_error == 0.08


def test_snapshots_may_be_taken_while_the_scheduler_works(scheduler):
    """Another thread reads at any moment without an error and without a torn record."""
    sys_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    failures, done = [], threading.Event()

    def watch():
        while not done.is_set():
            try:
                state = scheduler.snapshot()
                assert all(ran.end_s >= ran.start_s for ran in state.slices)
            except Exception as error:  # noqa: BLE001 (reported by the test)
                failures.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for n in range(200):
            one = cursor(n, request(str(n), class_name=f"class {n % 50}"))
            scheduler.round(*one.prefill.requests)
            scheduler.resume(one)
            scheduler.clock.advance(0.001)
            scheduler.stop(one)
            scheduler.recorder.num_preemptions += 1
            scheduler.recorder.on_first_token(one.prefill.requests[0], scheduler.clock())
            scheduler.end(one)
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(sys_interval)
    assert failures == []
