"""The event-driven loop: of a server, of stress runs, of tests on a real engine, of the simulator.

    collect events -> (if any) one scheduling round -> carry the decision out -> collect events

Carrying out a decision means running a prefill until it ends or an event interrupts it, running
one decode step, or sleeping. Between two passes every started prefill is suspended, and all of
them are in one ``InflightTable``.

Everything that a decision reads is counted here, preemptions and restarts too: observers may be
muted without a decision changing. With several ranks every rank runs this loop and makes the same
passes; what depends on a clock or a socket, which is every decision, goes through ``Agreement``.
Followers count events and time too, and nobody reads it.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

from sglang_flowprefill.core import (
    BlockedRequest,
    Decision,
    DropBatches,
    Event,
    EventKind,
    Observation,
    PredictionError,
    PrefillDecider,
    Reject,
    Release,
    ResumeBatch,
    RoundView,
    RunDecode,
    StartBatch,
    Wait,
)
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.core.decision import DECODE_NEEDS_MEMORY, QUIET_WANTED
from sglang_flowprefill.errors import ForwardError
from sglang_flowprefill.loop.admission import Admission
from sglang_flowprefill.loop.decode_clock import DecodeClock
from sglang_flowprefill.loop.engine import (
    Agreement,
    Alone,
    Completion,
    DecodingRequest,
    Engine,
    Shortfall,
    Started,
)
from sglang_flowprefill.loop.event_sources import EventSources
from sglang_flowprefill.loop.inflight import InflightTable, OperatorCursor
from sglang_flowprefill.loop.observer import Observer, Observers, Round

logger = logging.getLogger(__name__)

_IDLE_WAIT_S = 1.0  # an idle server still answers SGLang's periodic housekeeping
_BLOCKED_WAIT_S = 0.02  # work waits for memory, or for a grammar
_FREES_MEMORY = frozenset({EventKind.KV_FREED, EventKind.ABORT})
_ALONE = Alone()


class Decider(Protocol):
    """What decides, and may learn from what prefills really take.

    Attributes:
        present: The policy of this moment, with its predictions.
    """

    @property
    def present(self) -> PrefillDecider: ...  # noqa: D102 (documented above)

    def decide(self, view: RoundView, now_s: float) -> Decision:
        """Decide what runs next."""
        ...

    def learn(self, observation: Observation) -> PredictionError | None:
        """Take in a prefill that ended; return how far recent predictions were off."""
        ...


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Parameters of the loop.

    Attributes:
        unchecked_s: Seconds. A prefill predicted to take no longer passes its boundaries without
            looking for events: it would not be preempted anyway.
        checks_slices: Compare with the other ranks where every slice ended.
    """

    unchecked_s: float = 0.0
    checks_slices: bool = False


_DEFAULTS = LoopSettings()


class EventLoop(Generic[Started]):
    """Runs the prefills and decode steps of one engine.

    Args:
        engine: The machine below.
        events: What causes rounds, and interrupts prefills.
        decider: The policy.
        decode_clock: Tells when a decode step is due.
        clock: Monotonic time in seconds.
        inflight: The table to keep; others may read it.
        admission: What judges new requests; None admits every one.
        observers: Who is told what happens.
        agreement: How the ranks of the server decide as one.
        settings: Parameters.

    Attributes:
        inflight: Every started and unfinished prefill.
    """

    def __init__(
        self,
        engine: Engine[Started],
        events: EventSources,
        decider: Decider,
        decode_clock: DecodeClock,
        clock: Callable[[], float],
        *,
        inflight: InflightTable[Started] | None = None,
        admission: Admission | None = None,
        observers: Iterable[Observer] = (),
        agreement: Agreement = _ALONE,
        settings: LoopSettings = _DEFAULTS,
    ) -> None:
        self.inflight: InflightTable[Started] = InflightTable() if inflight is None else inflight
        self._engine = engine
        self._events = events
        self._decider = decider
        self._decode_clock = decode_clock
        self._clock = clock
        self._admission = admission
        self._observers = Observers(observers)
        self._agreement = agreement
        self._settings = settings
        self._new_events: list[Event] = []
        self._decision: Decision = Wait("start")
        self._blocked: BlockedRequest | None = None

    def run(self) -> None:
        """Serve until the engine closes."""
        try:
            while not self._engine.is_closing:
                self.step()
        finally:
            self._observers.tell(Observer.close)

    def step(self) -> None:
        """Make one pass: collect events, decide if there are any, carry the decision out."""
        self._collect_events()
        if self._engine.is_paused:
            self._engine.on_paused()
            self._events.wait(_IDLE_WAIT_S)
            return
        decision = self._agreement.agree(self._decide)
        self._new_events.clear()
        if decision is not None:
            self._decision = decision
        self._carry_out(self._decision)
        self._engine.after_pass()

    def _collect_events(self) -> None:
        """Take in what happened, and pick up what taking it in has put down."""
        taken = self._events.take()
        if self._engine.wants_quiet:
            self._drain()
            self._engine.dispatch_held()
        self._cancel_aborted()
        self._admit()
        taken += self._events.take_posted()
        if any(event.kind in _FREES_MEMORY for event in taken):
            self._unblock()
        self._new_events += taken
        for event in taken:
            self._observers.tell(Observer.on_event, event.kind)

    def _admit(self) -> None:
        """Judge the requests that are new, before any round sees them."""
        arrivals = self._engine.take_arrivals()
        for request in arrivals:
            self._observers.tell(Observer.on_arrival, request)
        if not arrivals or self._admission is None:
            return
        admission, decider = self._admission, self._decider.present
        verdicts = self._agreement.agree(
            lambda: admission.judge(arrivals, self._view(), decider, self._clock())
        )
        refused = [(request, v) for request, v in verdicts if isinstance(v, Reject)]
        degraded = [request for request, v in verdicts if not isinstance(v, Reject)]
        if refused:
            self._engine.refuse(refused)
        if degraded:
            self._engine.degrade(degraded)
        for request, verdict in verdicts:
            self._observers.tell(Observer.on_not_admitted, request, verdict)

    def _decide(self) -> Decision | None:
        """Decide once, for all events since the last round; None if there were none."""
        if not self._new_events:
            return None
        start_s, running = self._clock(), self._engine.running
        view = self._view_with(running)
        decision = self._ask_policy(view, start_s)
        self._observers.tell(
            Observer.on_round,
            Round(tuple(self._new_events), view, decision, start_s, self._clock(), len(running)),
        )
        logger.debug("FlowPrefill: %s", decision)
        return decision

    def _decide_without_memory(self) -> None:
        """Ask the policy once more, now that it can see who found no memory."""
        self._events.memory.watch()
        self._decision = self._agreement.agree(
            lambda: self._ask_policy(self._view(), self._clock())
        )

    def _ask_policy(self, view: RoundView, now_s: float) -> Decision:
        """Return a decision, and have the timer cause the next round that it asks for."""
        decision = self._decider.decide(view, now_s)
        due_s = math.inf
        if isinstance(decision, StartBatch | ResumeBatch):
            due_s = decision.review_s
        if view.decode is not None and view.decode.due_s > now_s:
            due_s = min(due_s, view.decode.due_s)
        self._events.timer.due_s = due_s
        return decision

    def _view(self) -> RoundView:
        return self._view_with(self._engine.running)

    def _view_with(self, running: Sequence[DecodingRequest]) -> RoundView:
        current = self.inflight.current
        batches = self.inflight.batches
        is_blocked = self._blocked is not None or any(b.num_missing_tokens for b in batches)
        return RoundView(
            waiting=self._engine.waiting,
            batches=batches,
            current=None if current is None else current.prefill,
            decode=self._decode_clock.view(running) if running else None,
            blocked=self._blocked,
            releases=self._releases(running) if is_blocked else (),
        )

    def _releases(self, running: Iterable[DecodingRequest]) -> list[Release]:
        """Predict what running requests give back: at the latest when they reach their limit."""
        now_s, tpot_s = self._clock(), self._decode_clock.default_tpot_s
        return [
            Release(now_s + request.num_tokens_left * tpot_s, request.num_kv_tokens)
            for request in running
        ]

    def _unblock(self) -> None:
        """Memory may have come free: whoever was turned away may ask again."""
        self._blocked = None
        for batch in self.inflight.batches:
            batch.num_missing_tokens = 0

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case StartBatch():
                self._start(decision)
            case ResumeBatch():
                self._resume(self.inflight[decision.batch_id], decision.reason)
            case DropBatches():
                for batch_id in decision.batch_ids:
                    self._drop(self.inflight[batch_id], decision.reason)
            case RunDecode():
                self._decode()
            case Wait():
                self._wait()

    def _start(self, decision: StartBatch) -> None:
        """Form the batch and run it; without memory for its head, decide again."""
        started = self._engine.start(decision.requests)
        if isinstance(started, Shortfall):
            self._blocked = BlockedRequest(decision.requests[0], started.num_missing_tokens)
            self._decide_without_memory()
            return
        predicted_s = self._decider.present.predict_s(started.requests)
        release_s = started.max_new_tokens * self._decode_clock.default_tpot_s
        self._resume(self.inflight.open(started, predicted_s, release_s), decision.reason)

    def _resume(self, cursor: OperatorCursor[Started], reason: str) -> None:
        """Run a prefill until its forward pass ends or an event comes."""
        if not self._has_forward(cursor):
            self._decide_without_memory()
            return
        self._note_preemption(cursor, reason)
        self.inflight.current = cursor
        self._decision = ResumeBatch(cursor.prefill.batch_id, "no event since the last round")
        is_preemptible = cursor.prefill.predicted_s > self._settings.unchecked_s
        has_ended = self._run_slice(cursor, reason, is_preemptible=is_preemptible)
        if not has_ended:
            now_s = self._clock()
            self._observers.tell(
                Observer.on_yield,
                cursor,
                now_s,
                self._events.cause,
                now_s - self._events.last_quiet_s,
            )

    def _has_forward(self, cursor: OperatorCursor[Started]) -> bool:
        """Tell whether a prefill can run; its next chunk may lack memory."""
        if not cursor.work.is_between_forwards:
            return True
        shortfall = self._engine.start_next_chunk(cursor.work)
        if shortfall is not None:
            cursor.prefill.num_missing_tokens = shortfall.num_missing_tokens
            return False
        cursor.num_forwards += 1
        cursor.prefill.num_kv_tokens = cursor.work.num_kv_tokens
        return True

    def _note_preemption(self, cursor: OperatorCursor[Started], reason: str) -> None:
        """Count it if a prefill is put in front of another that could have gone on."""
        before = self.inflight.current
        if before is None or before is cursor or before.prefill.num_missing_tokens:
            return
        before.prefill.num_preemptions += 1
        before.is_preempted = True
        self._observers.tell(Observer.on_preemption, before, cursor, self._clock(), reason)

    def _run_slice(
        self, cursor: OperatorCursor[Started], reason: str, *, is_preemptible: bool
    ) -> bool:
        """Run one slice and what its end brings; return True if the forward pass is over."""
        prefill, work = cursor.prefill, cursor.work
        self._events.start_slice()
        self._observers.tell(Observer.on_resume, cursor, self._clock(), reason)
        cursor.is_preempted = False
        prefill.apply(BatchChange.RESUME, self._clock())
        try:
            has_ended = self._engine.run(work, is_preemptible=is_preemptible)
        except ForwardError as error:
            self._fail(cursor, error)
            return True
        is_finished = has_ended and not work.has_more_chunks
        prefill.apply(BatchChange.FINISH if is_finished else BatchChange.YIELD, self._clock())
        if self._settings.checks_slices:
            where = (prefill.batch_id, work.num_boundaries, has_ended)
            self._agreement.require_equal("batch, boundary and end of a slice", where)
        if has_ended:
            self._end_forward(cursor)
        return has_ended

    def _end_forward(self, cursor: OperatorCursor[Started]) -> None:
        """Give out the result of a forward pass; more chunks may follow."""
        is_last = not cursor.work.has_more_chunks
        if is_last:
            self.inflight.close(cursor)
        end = self._engine.end_forward(cursor.work, cursor.prefill)
        now_s = self._clock()
        for request in end.first_tokens:
            self._observers.tell(Observer.on_first_token, request, now_s)
        self._report_completions(end.completions)
        if is_last:
            self._learn(cursor)
            self._observers.tell(Observer.on_prefill_end, cursor, now_s)
            self._events.post(EventKind.COMPLETION)
        else:
            cursor.prefill.requests = cursor.work.requests
            self._observers.tell(Observer.on_chunk_end, cursor, now_s)

    def _report_completions(self, completions: Iterable[Completion]) -> None:
        for completion in completions:
            self._observers.tell(Observer.on_completion, completion.request, completion.end)

    def _learn(self, cursor: OperatorCursor[Started]) -> None:
        """Learn from a prefill that ended, if it was one forward pass.

        What chunks take together is not what one forward pass over all of them would take.
        """
        if cursor.num_forwards > 1:
            return
        error = self._decider.learn(Observation.of(cursor.started_as, cursor.prefill.run_s))
        if error is not None:
            self._observers.tell(Observer.on_prediction, error)

    def _decode(self) -> None:
        self._make_room_for_decode()
        start_s = self._clock()
        step = self._engine.decode()
        now_s = self._clock()
        self._decode_clock.on_step(start_s, now_s)
        self._observers.tell(Observer.on_decode, start_s, now_s, step.num_requests)
        self._report_completions(step.completions)
        self._events.post(EventKind.COMPLETION)

    def _make_room_for_decode(self) -> None:
        """Before the engine retracts running requests, give up prefills for their memory.

        The least urgent one first. Prefills that may not be dropped run to their end instead,
        which gives room as soon as their requests end.
        """
        while len(self.inflight) and not self._engine.has_decode_memory():
            victim = self._agreement.agree(
                lambda: self._decider.present.choose_victim(self._view(), self._clock())
            )
            if victim is not None:
                self._drop(self.inflight[victim], DECODE_NEEDS_MEMORY)
            elif not self._run_one_to_its_end(DECODE_NEEDS_MEMORY):
                return

    def _wait(self) -> None:
        """Nothing to run: the engine's idle housekeeping, then sleep."""
        engine = self._engine
        engine.on_idle()
        if engine.is_idle:
            self._events.wait(_IDLE_WAIT_S)
            return
        self._events.wait(_BLOCKED_WAIT_S)
        if engine.waiting or len(self.inflight):
            self._unblock()
            self._events.post(EventKind.TIMER)

    def _drain(self) -> None:
        """Run every prefill in flight to its end, undisturbed; one without memory starts over."""
        while len(self.inflight):
            if not self._run_one_to_its_end(QUIET_WANTED):
                for cursor in self.inflight:
                    self._drop(cursor, QUIET_WANTED)

    def _run_one_to_its_end(self, reason: str) -> bool:
        """Run the oldest prefill that has memory to its end; return False if there is none."""
        for cursor in self.inflight:
            while cursor in self.inflight and self._has_forward(cursor):
                self._run_slice(cursor, reason, is_preemptible=False)
            if cursor not in self.inflight:
                return True
        return False

    def _cancel_aborted(self) -> None:
        """Cancel prefills whose every request was aborted; their memory is free at once.

        A batch with a live member runs on: its forward pass needs all its rows, and its aborted
        members are dropped with the result.
        """
        for cursor in self.inflight:
            if cursor.work.is_aborted:
                now_s = self._give_up(cursor, self._engine.release_aborted)
                self._observers.tell(Observer.on_cancel, cursor, now_s)

    def _drop(self, cursor: OperatorCursor[Started], reason: str) -> None:
        """Give a prefill up for its memory, which is free now; its requests start over later."""
        now_s = self._give_up(cursor, self._engine.requeue)
        self._observers.tell(Observer.on_drop, cursor, now_s, reason)

    def _give_up(
        self, cursor: OperatorCursor[Started], release: Callable[[Started], None]
    ) -> float:
        """Abandon a suspended prefill; return when."""
        self.inflight.close(cursor)
        now_s = self._clock()
        cursor.prefill.apply(BatchChange.CANCEL, now_s)
        release(cursor.work)
        self._events.post(EventKind.KV_FREED)
        return now_s

    def _fail(self, cursor: OperatorCursor[Started], error: ForwardError) -> None:
        """Answer the requests of a forward pass that raised, and go on without them."""
        self.inflight.close(cursor)
        now_s = self._clock()
        cursor.prefill.apply(BatchChange.FAIL, now_s)
        self._engine.release_failed(cursor.work, error)
        self._observers.tell(Observer.on_failure, cursor, now_s, error)
        self._events.post(EventKind.KV_FREED)
