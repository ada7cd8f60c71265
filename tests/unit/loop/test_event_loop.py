"""What the loop does when something goes wrong below it. Simulated; a token is 1 ms."""

import math
from dataclasses import replace

import pytest

from sglang_flowprefill.core import (
    AdmissionControl,
    DecodePacing,
    EventKind,
    PrefillDecider,
    SEdf,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.core.decision import DECODE_NEEDS_MEMORY, QUIET_WANTED
from sglang_flowprefill.errors import ForwardError
from sglang_flowprefill.loop.admission import Admission
from sglang_flowprefill.loop.decode_clock import DecodeClock
from sglang_flowprefill.loop.engine import Shortfall
from sglang_flowprefill.loop.event_loop import EventLoop
from sglang_flowprefill.loop.observer import Observer, Observers
from sglang_flowprefill.loop.statistics import StatisticsObserver
from sglang_flowprefill.sim import Arrival, MachineModel
from sglang_flowprefill.sim.engine import SimulatedEngine
from sglang_flowprefill.testing import MS_PER_TOKEN, make_request

DECIDER = PrefillDecider(SEdf(), MS_PER_TOKEN, BatchLimits(max_tokens=200), max_restarts=2)
MACHINE = MachineModel(MS_PER_TOKEN, num_layers=10, decode_step_s=0.01)
BROKEN = ForwardError(RuntimeError("an operator raised"))


def arrival(name, at_s, num_tokens, ttft_slo_s=60.0, class_name="default", **kwargs):
    """Return one arrival."""
    request = make_request(
        name,
        arrival_s=at_s,
        ttft_slo_s=ttft_slo_s,
        class_name=class_name,
        num_uncached_tokens=num_tokens,
    )
    return Arrival(request, **kwargs)


DOCUMENT = arrival("document", 0.0, 8000)
URGENT = arrival("urgent", 2.0, 100, ttft_slo_s=0.5)


class FaultyEngine(SimulatedEngine):
    """A simulated engine in which things happen that a simulation never sees.

    Attributes:
        broken: Ids of requests whose forward pass raises.
        failed: Ids of requests that were answered with an error.
        refused: Reason and seconds to wait of those that were refused, by id.
        quiet_from_s: From here on a message waits for a quiet engine, once.
        quiet: Time and prefills in flight when it got one.
        has_next_chunks: False if no chunk but the first finds memory.
        has_room: Tells whether the next decode step finds memory.
    """

    def __init__(self, machine, decider):
        super().__init__(machine, decider.must_reserve_all)
        self.broken, self.failed, self.refused = set(), [], {}
        self.quiet_from_s, self.quiet = None, []
        self.has_next_chunks = True
        self.has_room = lambda: True

    @property
    def wants_quiet(self):
        """True from then until it has been dispatched."""
        return self.quiet_from_s is not None and self.now_s >= self.quiet_from_s

    def dispatch_held(self):
        """Note when, and what is in flight."""
        self.quiet_from_s = None
        self.quiet.append((self.now_s, len(self._prefills)))

    def run(self, work, *, is_preemptible):
        """Raise for broken requests."""
        if any(request.request_id in self.broken for request in work.requests):
            raise BROKEN
        return super().run(work, is_preemptible=is_preemptible)

    def release_failed(self, work, error):
        """Answer with an error."""
        assert error is BROKEN
        for request in self._give_back(work):
            self.failed.append(request.request_id)

    def refuse(self, refused):
        """Note what each was told."""
        super().refuse(refused)
        for request, verdict in refused:
            self.refused[request.request_id] = (verdict.reason, verdict.retry_after_s)

    def start_next_chunk(self, work):
        """Find no memory if so told."""
        return super().start_next_chunk(work) if self.has_next_chunks else Shortfall(7)

    def has_decode_memory(self):
        """As told."""
        return self.has_room()


class Diary(Observer):
    """Notes who was given up, and why."""

    def __init__(self):
        self.entries = []

    def on_drop(self, cursor, now_s, reason):
        """Note a drop."""
        self.entries.append(("drop", self._ids(cursor), reason))

    def on_cancel(self, cursor, now_s):
        """Note a cancel."""
        self.entries.append(("cancel", self._ids(cursor), None))

    def on_failure(self, cursor, now_s, error):
        """Note a failure."""
        self.entries.append(("failure", self._ids(cursor), error))

    def _ids(self, cursor):
        return [request.request_id for request in cursor.prefill.requests]


class World:
    """A loop on a faulty engine, with everybody who will come."""

    def __init__(self, *arrivals, decider=DECIDER, machine=MACHINE):
        self.engine = FaultyEngine(machine, decider)
        for each in arrivals:
            self.engine.add(each)
        self.diary, self.statistics = Diary(), StatisticsObserver()
        self.loop = EventLoop(
            self.engine,
            self.engine.events,
            Fixed(decider),
            DecodeClock(DecodePacing(), 0.2, 0.01),
            self.engine.clock,
            observers=(self.diary, self.statistics),
        )

    def serve(self):
        """Run until nothing is left."""
        while self.engine.num_coming or not self.engine.is_idle:
            self.loop.step()
        self.loop.step()
        assert len(self.loop.inflight) == 0
        assert self.engine.kv.num_used == 0
        return self.statistics.statistics()

    def first_token_s(self, name):
        """Return when a request got its first token."""
        return self.engine.outcomes[name].first_token_s


class Fixed:
    """A decider that learns nothing, but remembers what it was told."""

    def __init__(self, decider):
        self.present, self.learnt = decider, []

    def decide(self, view, now_s):
        """Decide."""
        return self.present.decide(view, now_s)

    def learn(self, observation):
        """Remember."""
        self.learnt.append(observation)


# ---- a forward pass that raises ----


def test_a_forward_pass_that_raises_fails_its_own_requests_and_nobody_else():
    """Its memory is free, its requests are answered, and the prefill that it preempted goes on."""
    world = World(DOCUMENT, URGENT)
    world.engine.broken = {"urgent"}
    statistics = world.serve()
    assert world.engine.failed == ["urgent"]
    assert world.diary.entries == [("failure", ["urgent"], BROKEN)]
    assert world.first_token_s("document") == pytest.approx(8.0)
    assert (statistics.num_failed, statistics.num_prefills, statistics.num_dropped) == (1, 1, 0)


def test_whoever_waited_for_the_memory_of_what_raised_gets_it():
    """A failure frees memory like any other end."""
    world = World(DOCUMENT, URGENT, machine=replace(MACHINE, num_kv_tokens=8050))
    world.engine.broken = {"document"}
    world.serve()
    assert world.engine.failed == ["document"]
    assert world.first_token_s("urgent") == pytest.approx(2.1)


# ---- a message that needs a quiet engine ----


def test_a_message_that_needs_quiet_is_dispatched_once_every_prefill_has_ended():
    """Undisturbed: the urgent arrival that comes with it waits as well."""
    world = World(DOCUMENT, URGENT)
    world.engine.quiet_from_s = 2.0
    statistics = world.serve()
    assert world.engine.quiet == [(pytest.approx(8.0), 0)]
    assert world.first_token_s("urgent") == pytest.approx(8.1)
    assert statistics.num_preemptions == 0
    assert world.diary.entries == []


def test_what_cannot_end_for_want_of_memory_starts_over_so_that_it_gets_quiet():
    """A prompt between two chunks that finds no memory for the next one."""
    world = World(DOCUMENT, URGENT, machine=replace(MACHINE, max_chunk_tokens=3000))
    world.engine.quiet_from_s = 2.0
    world.engine.has_next_chunks = False
    while not world.engine.quiet:
        world.loop.step()
    assert world.engine.quiet == [(pytest.approx(3.0), 0)]
    assert world.diary.entries == [("drop", ["document"], QUIET_WANTED)]
    world.engine.has_next_chunks = True
    assert world.serve().num_restarts == 1
    assert world.first_token_s("document") == pytest.approx(3.0 + 0.1 + 8.0, abs=0.5)


# ---- decode without memory ----


def memory_for_decode(world):
    """Let decode steps find memory only while no prefill is in flight."""
    world.engine.has_room = lambda: not len(world.loop.inflight)


def test_a_prefill_makes_room_for_decode_and_starts_over():
    """Running requests go first; the least urgent prefill gives way, not the whole table."""
    world = World(DOCUMENT, replace(URGENT, num_output_tokens=2))
    memory_for_decode(world)
    statistics = world.serve()
    assert world.diary.entries == [("drop", ["document"], DECODE_NEEDS_MEMORY)]
    assert (statistics.num_dropped, statistics.num_restarts) == (1, 1)
    assert statistics.lost_s == pytest.approx(2.0, abs=0.5)
    assert world.first_token_s("document") > 10.0


def test_a_prefill_that_may_not_be_dropped_runs_to_its_end_before_the_decode_step():
    """Its requests end soon, which gives room; a running request is not retracted for it."""
    world = World(
        DOCUMENT,
        replace(URGENT, num_output_tokens=2),
        decider=replace(DECIDER, max_restarts=0),
    )
    memory_for_decode(world)
    statistics = world.serve()
    assert world.diary.entries == []
    assert statistics.num_decode_steps == 1
    assert world.engine.decode_ends_s[0] >= world.first_token_s("document")


# ---- aborts ----


def test_a_blocked_request_that_is_aborted_is_waited_for_by_nobody():
    """Its memory was kept free for it; once it is gone, the next one that fits starts at once."""
    decoding = replace(arrival("decoding", 0.0, 7000), num_output_tokens=2000)
    blocked = replace(arrival("blocked", 8.0, 4000, ttft_slo_s=20.0), abort_s=10.0)
    small = arrival("small", 9.0, 100, ttft_slo_s=25.0)
    world = World(decoding, blocked, small, machine=replace(MACHINE, num_kv_tokens=9500))
    statistics = world.serve()
    assert 10.0 <= world.first_token_s("small") <= 10.3
    assert world.diary.entries == []
    assert statistics.num_events[EventKind.ABORT] == 1


@pytest.mark.parametrize(("abort_s", "num_dropped"), [(5.0, 0), (math.inf, 1)])
def test_nothing_is_dropped_for_a_request_that_is_gone(abort_s, num_dropped):
    """It could wait for the document's end, which is late; at the review it may be gone."""
    slow = replace(DOCUMENT, slowdown=2.0)
    waits = arrival("waits", 2.0, 100, ttft_slo_s=6.5, abort_s=abort_s)
    world = World(slow, waits, machine=replace(MACHINE, num_kv_tokens=8050))
    assert world.serve().num_dropped == num_dropped


def test_a_cancel_a_drop_and_an_abort_are_counted_apart():
    """A client leaves (abort), its prefill is given up (cancel), another loses memory (drop)."""
    leaving = replace(arrival("leaving", 20.0, 4000), abort_s=21.0)
    world = World(DOCUMENT, URGENT, leaving, machine=replace(MACHINE, num_kv_tokens=8050))
    statistics = world.serve()
    assert [entry[:2] for entry in world.diary.entries] == [
        ("drop", ["document"]),
        ("cancel", ["leaving"]),
    ]
    assert (statistics.num_dropped, statistics.num_cancelled, statistics.num_preemptions) == (
        1,
        1,
        0,
    )
    assert statistics.num_events[EventKind.ABORT] == 1
    assert statistics.num_events[EventKind.KV_FREED] >= 2


# ---- what observers are told ----


class Script(Observer):
    """Notes everything that it is told, in order, with whom and when."""

    def __init__(self):
        self.lines, self.rounds = [], []

    def on_arrival(self, request):
        """Note it."""
        self._note("arrives", request.request_id)

    def on_not_admitted(self, request, verdict):
        """Note it."""
        self._note("not admitted", request.request_id, verdict.reason)

    def on_round(self, round_):
        """Keep it."""
        self.rounds.append(round_)

    def on_preemption(self, preempted, by, now_s, reason):
        """Note it."""
        names = (cursor.prefill.requests[0].request_id for cursor in (preempted, by))
        self._note("preempts", *names, now_s, reason, preempted.is_preempted)

    def on_resume(self, cursor, now_s, reason):
        """Note it."""
        self._note("runs", self._name(cursor), now_s, reason)

    def on_yield(self, cursor, now_s, cause, blocking_s):
        """Note it."""
        assert 0.0 <= blocking_s <= 0.42
        self._note("yields", self._name(cursor), now_s, cause)

    def on_chunk_end(self, cursor, now_s):
        """Note it."""
        self._note("ends a chunk", self._name(cursor), now_s)

    def on_prefill_end(self, cursor, now_s):
        """Note it."""
        self._note("ends", cursor.started_as[0].request_id, now_s, cursor.prefill.state.value)

    def on_first_token(self, request, now_s):
        """Note it."""
        self._note("first token", request.request_id, now_s)

    def on_completion(self, request, end):
        """Note it."""
        self._note("completes", request.request_id, end)

    def on_decode(self, start_s, end_s, num_requests):
        """Note it."""
        self._note("decodes", start_s, end_s, num_requests)

    def _name(self, cursor):
        return cursor.prefill.requests[0].request_id

    def _note(self, *line):
        self.lines.append(tuple(round(x, 6) if isinstance(x, float) else x for x in line))


def script(world):
    """Serve, and return what was told."""
    told = Script()
    world.loop._observers = Observers([told, world.statistics])
    world.serve()
    return told


def test_observers_are_told_what_happens_in_its_order():
    """A preemption, a suspension, a decode step and the ends, each with its time and reason."""
    told = script(World(DOCUMENT, replace(URGENT, num_output_tokens=2)))
    yield_s = told.lines[2][2]
    assert told.lines[:1] == [("arrives", "document")]
    assert told.lines == [
        ("arrives", "document"),
        ("runs", "document", 0.0, "first in policy order"),
        ("yields", "document", yield_s, "simulated event"),
        ("arrives", "urgent"),
        ("preempts", "document", "urgent", yield_s, "preempts the current prefill", True),
        ("runs", "urgent", yield_s, "preempts the current prefill"),
        ("first token", "urgent", round(yield_s + 0.1, 6)),
        ("ends", "urgent", round(yield_s + 0.1, 6), "finished"),
        ("runs", "document", round(yield_s + 0.1, 6), "first in policy order"),
        ("yields", "document", told.lines[9][2], "simulated event"),
        ("decodes", told.lines[9][2], round(told.lines[9][2] + 0.01, 6), 1),
        ("completes", "urgent", "length"),
        ("runs", "document", round(told.lines[9][2] + 0.01, 6), told.lines[12][3]),
        ("first token", "document", 8.11),
        ("completes", "document", "length"),
        ("ends", "document", 8.11, "finished"),
    ]


def test_a_prompt_in_chunks_tells_the_end_of_each():
    """The last forward pass ends the prefill."""
    told = script(World(DOCUMENT, machine=replace(MACHINE, max_chunk_tokens=3000)))
    ends = [line for line in told.lines if line[0] in {"ends a chunk", "ends"}]
    assert ends == [
        ("ends a chunk", "document", 3.0),
        ("ends a chunk", "document", 6.0),
        ("ends", "document", 8.0, "finished"),
    ]


def test_observers_are_told_who_was_not_admitted_and_statistics_count_them():
    """A refusal and a degradation by class; the others are counted as arrivals only."""
    hopeless = [arrival(name, 1.0, 900, ttft_slo_s=0.1) for name in ("a", "b")]
    hopeless.append(arrival("c", 1.0, 900, ttft_slo_s=0.1, class_name="soft"))
    world = World(DOCUMENT, *hopeless)
    mode_of = {"soft": "degrade"}.get
    world.loop._admission = Admission(AdmissionControl("reject"), mode_of)
    told = script(world)
    reasons = {line[1]: line[2] for line in told.lines if line[0] == "not admitted"}
    too_long = "too long for its deadline on an idle server"
    assert reasons == {"a": too_long, "b": too_long, "c": "predicted to miss its deadline"}
    assert world.engine.refused == {"a": (too_long, math.inf), "b": (too_long, math.inf)}
    statistics = world.statistics
    assert statistics.num_arrived == {"default": 3, "soft": 1}
    assert statistics.num_rejected == {"default": 2}
    assert statistics.num_degraded == {"soft": 1}


def test_a_round_is_told_with_what_it_saw():
    """Memory that comes free by itself is looked up only while somebody waits for memory."""
    decoding = replace(arrival("decoding", 0.0, 100), num_output_tokens=500)
    blocked = arrival("blocked", 3.0, 4000, ttft_slo_s=70.0)
    document = arrival("document", 2.0, 8000, ttft_slo_s=60.0)
    machine = replace(MACHINE, num_kv_tokens=9000)
    told = script(World(decoding, document, blocked, machine=machine))
    first, second = told.rounds[0], told.rounds[1]
    assert [event.kind for event in first.events] == [EventKind.ARRIVAL]
    assert first.decision.requests[0].request_id == "decoding"
    assert (first.view.current, first.num_running) == (None, 0)
    assert second.num_running == 1
    assert first.start_s == first.end_s == 0.0
    running = [r for r in told.rounds if r.view.current is not None and r.num_running]
    assert running
    assert running[0].view.current.requests[0].request_id == "document"
    assert all(not r.view.releases for r in told.rounds if r.view.blocked is None)


# ---- learning ----


def test_only_a_prompt_of_one_forward_pass_teaches_the_predictor():
    """What chunks take together is not what one forward pass over all of them would take."""
    world = World(DOCUMENT, URGENT, machine=replace(MACHINE, max_chunk_tokens=3000))
    world.serve()
    (observation,) = world.loop._decider.learnt
    assert (observation.num_uncached_tokens, observation.actual_s) == (100, pytest.approx(0.1))
