"""What a watcher is told of a scheduler, from what the event loop reports."""

import sys
import threading

import pytest

from sglang_flowprefill.core import (
    Event,
    EventKind,
    PredictionError,
    Reject,
    RoundView,
    StartBatch,
)
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.loop.inflight import InflightTable
from sglang_flowprefill.loop.observer import Observer, Observers, Round
from sglang_flowprefill.loop.statistics import StatisticsObserver
from sglang_flowprefill.observe.live_state import LiveState
from sglang_flowprefill.testing import ManualClock
from tests.unit.observe.cursors import make_request as request
from tests.unit.observe.cursors import open_cursor


class Scheduler:
    """Drives a ``LiveState`` as the event loop does."""

    def __init__(self):
        self.clock = ManualClock(100.0)
        self.inflight = InflightTable()
        self.counted = StatisticsObserver()
        self.live = LiveState("s-edf", "operator", {"chat": 1000.0}, self.clock, self.inflight)
        self._observers = Observers([self.counted, self.live])

    def tell(self, *what):
        """Tell both."""
        self._observers.tell(*what)

    def open(self, *requests):
        """Start a prefill."""
        return open_cursor(self.inflight, *requests)

    def round(self, *waiting, num_decoding=0):
        """One round that found these waiting."""
        now_s = self.clock()
        decision = StartBatch(tuple(waiting[:1]), "first")
        events = [Event(EventKind.ARRIVAL, now_s)]
        self.tell(
            Observer.on_round,
            Round(events, RoundView(waiting), decision, now_s, now_s + 0.001, num_decoding),
        )

    def resume(self, cursor):
        """Run a prefill from now on."""
        self.tell(Observer.on_resume, cursor, self.clock(), "first")
        cursor.prefill.apply(BatchChange.RESUME, self.clock())

    def stop(self, cursor, *, blocking_s=0.002):
        """Suspend it."""
        cursor.prefill.apply(BatchChange.YIELD, self.clock())
        self.tell(Observer.on_yield, cursor, self.clock(), "message", blocking_s)

    def end_chunk(self, cursor):
        """End a forward pass that is not the last."""
        cursor.prefill.apply(BatchChange.YIELD, self.clock())
        self.tell(Observer.on_chunk_end, cursor, self.clock())

    def end(self, cursor):
        """End a prefill that runs."""
        cursor.prefill.apply(BatchChange.FINISH, self.clock())
        self.inflight.close(cursor)
        self.tell(Observer.on_prefill_end, cursor, self.clock())

    def cancel(self, cursor):
        """Give up a prefill whose requests were aborted."""
        self.inflight.close(cursor)
        self.tell(Observer.on_cancel, cursor, self.clock())

    def snapshot(self):
        """Ask as a watcher would."""
        return self.live.snapshot(self.counted)


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
    one = scheduler.open(request("a"))
    scheduler.resume(one)
    scheduler.clock.advance(0.5)
    (prefill,) = scheduler.snapshot().prefills
    assert (prefill.state, prefill.run_s, prefill.since_s) == ("running", 0.5, 100.0)
    assert prefill.slack_s == 0.5
    assert prefill.num_boundaries == 17


def test_a_suspended_prefill_stands_still_and_holds_memory(scheduler):
    """After the yield its seconds stay; the slice it ran is history; the memory is counted."""
    one = scheduler.open(request("a"))
    scheduler.resume(one)
    scheduler.clock.advance(0.5)
    scheduler.stop(one)
    scheduler.clock.advance(0.25)
    state = scheduler.snapshot()
    (prefill,) = state.prefills
    assert (prefill.state, prefill.run_s, prefill.since_s) == ("suspended", 0.5, 100.5)
    assert state.suspended_bytes == 1000
    (ran,) = state.slices
    assert (ran.batch_id, ran.start_s, ran.end_s, ran.end) == (0, 100.0, 100.5, "yield")


def test_an_ended_prefill_is_history_only(scheduler):
    """It leaves the unfinished ones; a forward pass that is not its last does not."""
    one = scheduler.open(request("a"))
    scheduler.resume(one)
    scheduler.end_chunk(one)
    assert len(scheduler.snapshot().prefills) == 1
    scheduler.clock.advance(0.1)
    scheduler.resume(one)
    scheduler.end(one)
    state = scheduler.snapshot()
    assert state.prefills == []
    assert [ran.end for ran in state.slices] == ["chunk finished", "finished"]


def test_a_prefill_cancelled_while_suspended_adds_no_slice(scheduler):
    """Nothing ran, so nothing is drawn."""
    one = scheduler.open(request("a"))
    scheduler.resume(one)
    scheduler.stop(one)
    scheduler.cancel(one)
    assert [ran.end for ran in scheduler.snapshot().slices] == ["yield"]


def test_who_has_been_started_waits_no_longer(scheduler):
    """The queue of the last round is shown without those that run since."""
    first, second = request("a"), request("b", class_name="other")
    scheduler.round(first, second, num_decoding=4)
    scheduler.resume(scheduler.open(first))
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
    for n in range(3):
        scheduler.tell(Observer.on_arrival, request(f"chat {n}"))
    refusal = Reject("the queue is full", 1.0)
    scheduler.tell(Observer.on_not_admitted, request("chat 0"), refusal)
    scheduler.tell(Observer.on_first_token, request("x", class_name="own"), 100.5)
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
    one = scheduler.open(request("a"))
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
    scheduler.tell(Observer.on_prediction, PredictionError(12, 0.08, -0.02))
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
            one = scheduler.open(request(str(n), class_name=f"class {n % 50}"))
            scheduler.round(*one.prefill.requests)
            scheduler.resume(one)
            scheduler.clock.advance(0.001)
            scheduler.stop(one)
            first_token_of = one.prefill.requests[0]
            scheduler.tell(Observer.on_first_token, first_token_of, scheduler.clock())
            scheduler.resume(one)
            scheduler.end(one)
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(sys_interval)
    assert failures == []
