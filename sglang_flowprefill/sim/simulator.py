"""The event loop of ``loop/event_loop.py`` on a simulated machine.

Same rules: a round only after an event, one decision until the next round, a prefill yields at
the first boundary after an event, a decode step is due as ``core/decode.py`` says. A
decision for which there is no memory is noted and decided again within the same round; what was
noted is forgotten when memory has come free.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from sglang_flowprefill.core import (
    AdmissionControl,
    Admit,
    BlockedRequest,
    Decision,
    DecodePacing,
    DecodeView,
    Degrade,
    DropBatches,
    EventKind,
    PrefillBatch,
    PrefillDecider,
    PrefillRequest,
    Reject,
    ResumeBatch,
    RoundView,
    RunDecode,
    RunningRequest,
    StartBatch,
    StatisticsRecorder,
    Wait,
)
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.sim.kv_pool import KvPool
from sglang_flowprefill.sim.machine import MachineModel
from sglang_flowprefill.sim.records import Arrival, Outcome, SimulationResult

_AT_ONCE = DecodePacing()
_EVERYBODY = AdmissionControl()


def simulate(
    arrivals: Iterable[Arrival],
    scheduler: PrefillDecider,
    machine: MachineModel,
    *,
    tpot_slo_s: float = 0.2,
    pacing: DecodePacing = _AT_ONCE,
    admission: AdmissionControl = _EVERYBODY,
) -> SimulationResult:
    """Serve all arrivals to their last token.

    Args:
        arrivals: Requests in any order.
        scheduler: The policy. Its predictor may differ from the machine's cost.
        machine: What takes how long, and how much memory there is.
        tpot_slo_s: Objective from one token to the next, of requests that have none of their own.
        pacing: When a decode step runs beside prefills.
        admission: What happens to hopeless requests at their arrival.

    Raises:
        ValueError: Two requests share an id, or one does not fit into the machine's memory.
    """
    simulation = Simulation(
        scheduler, machine, tpot_slo_s=tpot_slo_s, pacing=pacing, admission=admission
    )
    given = list(arrivals)
    for arrival in given:
        simulation.add(arrival)
    simulation.run()
    return SimulationResult(
        outcomes=tuple(simulation.outcomes[arrival.request.request_id] for arrival in given),
        blocking_s=tuple(simulation.blocking_s),
        decode_ends_s=tuple(simulation.decode_ends_s),
        max_kv_tokens=simulation.kv.max_used,
        statistics=simulation.recorder.statistics(),
    )


@dataclass(slots=True, eq=False)
class _Cursor:
    """A started prefill: the forward passes to come, and the operators left of this one."""

    prefill: PrefillBatch
    chunks: deque[tuple[PrefillRequest, ...]]
    slowdown: float
    operators_s: deque[float]

    @property
    def is_finished(self) -> bool:
        return not self.operators_s and not self.chunks


@dataclass(slots=True, eq=False)
class _Decoding:
    """A request past its prefill."""

    outcome: Outcome
    num_tokens_left: int
    last_token_s: float


class Simulation:
    """The loop, to be driven step by step; ``simulate`` drives it through a whole trace.

    Args:
        scheduler: As for ``simulate``, like the others.
        machine: What takes how long, and how much memory there is.
        tpot_slo_s: Default objective from one token to the next.
        pacing: When a decode step runs beside prefills.
        admission: What happens to hopeless requests at their arrival.

    Attributes:
        now_s: Simulated time.
        outcomes: Of the requests that have ended, by id.
        waiting: Requests that wait for their prefill.
        prefills: Started and unfinished ones.
        running_ids: Of requests past their prefill.
        kv: The KV slots.
        recorder: The statistics.
        blocking_s: For each yield, seconds from the event to the boundary.
        decode_ends_s: When each decode step ended.
    """

    def __init__(
        self,
        scheduler: PrefillDecider,
        machine: MachineModel,
        *,
        tpot_slo_s: float = 0.2,
        pacing: DecodePacing = _AT_ONCE,
        admission: AdmissionControl = _EVERYBODY,
    ) -> None:
        self._scheduler = scheduler
        self._machine = machine
        self._tpot_slo_s = tpot_slo_s
        self._pacing = pacing
        self._admission = admission
        self._by_id: dict[str, Arrival] = {}
        self._coming: list[tuple[float, int, PrefillRequest]] = []
        self._leaving: list[tuple[float, str]] = []
        self._round_cause: EventKind | None = None
        self._decision: Decision = Wait("start")
        self._blocked: BlockedRequest | None = None
        self._num_used_when_blocked = -1
        self._cursors: dict[int, _Cursor] = {}
        self._current: _Cursor | None = None
        self._decoding: list[_Decoding] = []
        self._last_step_end_s = -math.inf
        self._timer_s = math.inf
        self._next_batch_id = 0
        self._until_s = math.inf
        self.now_s = 0.0
        self.waiting: list[PrefillRequest] = []
        self.kv = KvPool(machine.num_kv_tokens)
        self.recorder = StatisticsRecorder()
        self.outcomes: dict[str, Outcome] = {}
        self.blocking_s: list[float] = []
        self.decode_ends_s: list[float] = []

    @property
    def prefills(self) -> list[PrefillBatch]:
        """Started and unfinished prefills."""
        return [cursor.prefill for cursor in self._cursors.values()]

    @property
    def running_ids(self) -> list[str]:
        """Ids of the requests past their prefill."""
        return [decoding.outcome.request.request_id for decoding in self._decoding]

    @property
    def num_coming(self) -> int:
        """Requests that were added and have not arrived yet."""
        return len(self._coming)

    @property
    def has_work(self) -> bool:
        """True if any request is still to come or has not ended."""
        return bool(self._coming or self.waiting or self._cursors or self._decoding)

    def add(self, arrival: Arrival) -> None:
        """Let a request come, at its arrival time.

        Raises:
            ValueError: Its id has been used, or it does not fit into the machine's memory.
        """
        request = arrival.request
        if request.request_id in self._by_id:
            raise ValueError("every simulated request needs an id of its own")
        capacity = self._machine.num_kv_tokens
        if capacity is not None and arrival.num_kv_tokens > capacity:
            raise ValueError(f"a request needs more than the machine's {capacity} KV slots")
        heappush(self._coming, (request.arrival_s, len(self._by_id), request))
        self._by_id[request.request_id] = arrival
        if arrival.abort_s < math.inf:
            self.abort(request.request_id, arrival.abort_s)

    def abort(self, request_id: str, time_s: float) -> None:
        """Let the client of a request leave at a time; one that has ended by then does not mind."""
        heappush(self._leaving, (time_s, request_id))

    def run(self, until_s: float = math.inf) -> None:
        """Serve what has come until then; a forward pass stops at its next boundary."""
        self._until_s = until_s
        while self.has_work and self.now_s < until_s:
            self._collect_events()
            if self._round_cause is not None:
                self._decision = self._run_round(self._round_cause)
            self._carry_out(self._decision)

    # ---- events and rounds ----

    def _collect_events(self) -> None:
        while self._coming and self._coming[0][0] <= self.now_s:
            self._arrive(heappop(self._coming)[2])
            self._note(EventKind.ARRIVAL)
        while self._leaving and self._leaving[0][0] <= self.now_s:
            self._leave(heappop(self._leaving)[1])
        if self.now_s >= self._timer_s:
            self._timer_s = math.inf
            self._note(EventKind.TIMER)
        if self.kv.num_used < self._num_used_when_blocked:
            self._forget_blocked()
            self._note(EventKind.KV_FREED)

    def _arrive(self, request: PrefillRequest) -> None:
        match self._admission.decide(request, self._scheduler, self._view(), self.now_s):
            case Admit():
                self.waiting.append(request)
            case Degrade():
                self.waiting.append(replace(request, is_degraded=True))
            case Reject():
                self.outcomes[request.request_id] = Outcome(
                    request, math.inf, math.inf, num_preemptions=0, is_rejected=True
                )

    def _note(self, kind: EventKind) -> None:
        self._round_cause = self._round_cause or kind
        self.recorder.num_events[kind] += 1

    def _decide_without_memory(self) -> None:
        """Decide again within the round, now that it is known who lacks memory."""
        self._num_used_when_blocked = self.kv.num_used
        self._decision = self._decide()

    def _forget_blocked(self) -> None:
        """Memory came free: whoever lacked some may try again."""
        self._num_used_when_blocked = -1
        self._blocked = None
        for cursor in self._cursors.values():
            cursor.prefill.num_missing_tokens = 0

    def _run_round(self, cause: EventKind) -> Decision:
        self._round_cause = None
        self.recorder.num_rounds_by_cause[cause] += 1
        return self._decide()

    def _view(self) -> RoundView:
        return RoundView(
            waiting=tuple(self.waiting),
            batches=[cursor.prefill for cursor in self._cursors.values()],
            current=None if self._current is None else self._current.prefill,
            decode=self._decode_view() if self._decoding else None,
            blocked=self._blocked,
        )

    def _decide(self) -> Decision:
        view = self._view()
        decode = view.decode
        decision = self._scheduler.decide(view, self.now_s)
        self._timer_s = math.inf
        if isinstance(decision, StartBatch | ResumeBatch):
            self._timer_s = decision.review_s
            if decode is not None and decode.due_s > self.now_s:
                self._timer_s = min(self._timer_s, decode.due_s)
        return decision

    def _decode_view(self) -> DecodeView:
        running = [
            RunningRequest.of(d.outcome.request.slo, d.last_token_s, self._tpot_slo_s)
            for d in self._decoding
        ]
        return self._pacing.view(running, self._last_step_end_s, self._step_s())

    def _step_s(self) -> float:
        return self._machine.decode_step_s + len(self._decoding) * self._machine.decode_request_s

    # ---- carrying out ----

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case StartBatch():
                self._start(decision.requests)
            case ResumeBatch():
                self._resume(self._cursors[decision.batch_id])
            case DropBatches():
                self._drop(decision.batch_ids)
            case RunDecode():
                self._decode()
            case Wait():
                next_s = self._next_event_s()
                if next_s < math.inf:
                    self.now_s = max(self.now_s, next_s)
                else:  # the last one to come has left before its arrival
                    assert not self.has_work, "the policy waits although there is work"

    def _start(self, requests: tuple[PrefillRequest, ...]) -> None:
        """Admit the head and the passengers for which there is memory; without it, ask again."""
        admitted: list[PrefillRequest] = []
        for request in requests:
            is_alone = len(requests) == 1
            num_tokens = self._num_tokens_to_start(request, is_alone=is_alone)
            num_missing = self.kv.num_missing(num_tokens)
            if num_missing:
                if not admitted:
                    self._blocked = BlockedRequest(request, num_missing)
                    self._decide_without_memory()
                    return
                break
            self.kv.take(request.request_id, num_tokens)
            admitted.append(request)
        self._resume(self._open_cursor(tuple(admitted)))

    def _num_tokens_to_start(self, request: PrefillRequest, *, is_alone: bool) -> int:
        arrival = self._by_id[request.request_id]
        (first, *later) = self._machine.chunks((request,))
        if not later or not is_alone or self._scheduler.must_reserve_all(request):
            return arrival.num_kv_tokens
        return first[0].num_cached_tokens + first[0].num_uncached_tokens

    def _open_cursor(self, requests: tuple[PrefillRequest, ...]) -> _Cursor:
        for request in requests:
            self.waiting.remove(request)
        slowdown = max(self._by_id[request.request_id].slowdown for request in requests)
        chunks = deque(self._machine.chunks(requests))
        predicted_s = sum(self._scheduler.predict_s(chunk) for chunk in chunks)
        prefill = PrefillBatch(self._next_batch_id, requests, predicted_s)
        prefill.held_bytes = self._machine.bytes_per_token * sum(
            request.num_uncached_tokens for request in chunks[0]
        )
        prefill.release_s = self._tpot_slo_s * max(
            self._by_id[request.request_id].num_output_tokens - 1 for request in requests
        )
        cursor = _Cursor(prefill, chunks, slowdown, deque())
        self._cursors[self._next_batch_id] = cursor
        self._next_batch_id += 1
        self._open_chunk(cursor)
        return cursor

    def _open_chunk(self, cursor: _Cursor) -> bool:
        """Begin the next forward pass, if there is memory for it."""
        requests = cursor.prefill.requests
        chunk = cursor.chunks[0]
        num_missing = self._take_for_chunk(requests[0], chunk[0], is_last=len(cursor.chunks) == 1)
        cursor.prefill.num_missing_tokens = num_missing
        if num_missing:
            return False
        cursor.prefill.num_kv_tokens = sum(self.kv.held_by(r.request_id) for r in requests)
        cursor.chunks.popleft()
        cursor.operators_s.extend(self._machine.operators_s(chunk, cursor.slowdown))
        return True

    def _take_for_chunk(
        self, request: PrefillRequest, chunk: PrefillRequest, *, is_last: bool
    ) -> int:
        """Take what a prompt needs by the end of a chunk; return what lacks for it."""
        num_needed = chunk.num_cached_tokens + chunk.num_uncached_tokens
        if is_last:
            num_needed = self._by_id[request.request_id].num_kv_tokens
        num_more = max(num_needed - self.kv.held_by(request.request_id), 0)
        num_missing = self.kv.num_missing(num_more)
        if not num_missing:
            self.kv.take(request.request_id, num_more)
        return num_missing

    def _resume(self, cursor: _Cursor) -> None:
        """Run a prefill until it ends, an event comes, or its next chunk lacks memory."""
        if not cursor.operators_s and not self._open_chunk(cursor):
            self._decide_without_memory()
            return
        before = self._current
        if before is not None and before is not cursor and before.prefill.num_missing_tokens == 0:
            before.prefill.num_preemptions += 1
            self.recorder.num_preemptions += 1
        self._current = cursor
        self._decision = ResumeBatch(cursor.prefill.batch_id, "no event since the last round")
        self.recorder.on_resume(cursor.prefill)
        cursor.prefill.apply(BatchChange.RESUME, self.now_s)
        event_s = self._next_event_s()
        while cursor.operators_s:
            self.now_s += cursor.operators_s.popleft()
            if cursor.is_finished:
                cursor.prefill.apply(BatchChange.FINISH, self.now_s)
                self._finish(cursor.prefill)
            elif event_s <= self.now_s:
                cursor.prefill.apply(BatchChange.YIELD, self.now_s)
                if event_s < self._until_s:
                    self.blocking_s.append(self.now_s - event_s)
                return
            elif not cursor.operators_s and not self._open_chunk(cursor):
                cursor.prefill.apply(BatchChange.YIELD, self.now_s)
                self._decide_without_memory()

    def _next_event_s(self) -> float:
        """Time of the next event that a running prefill has to notice."""
        arrival_s = self._coming[0][0] if self._coming else math.inf
        abort_s = self._leaving[0][0] if self._leaving else math.inf
        return min(arrival_s, abort_s, self._timer_s, self._until_s)

    def _finish(self, prefill: PrefillBatch) -> None:
        del self._cursors[prefill.batch_id]
        self._current = None
        self.recorder.num_prefills += 1
        self._note(EventKind.COMPLETION)
        for request in prefill.requests:
            if request.request_id in self.outcomes:  # aborted meanwhile
                self.kv.give_back(request.request_id)
                continue
            self.recorder.on_first_token(request, self.now_s)
            arrival = self._by_id[request.request_id]
            outcome = Outcome(
                arrival.request,
                self.now_s,
                self.now_s,
                prefill.num_preemptions,
                request.num_restarts,
            )
            if arrival.num_output_tokens > 1:
                num_tokens_left = arrival.num_output_tokens - 1
                self._decoding.append(_Decoding(outcome, num_tokens_left, self.now_s))
            else:
                self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        self.kv.give_back(outcome.request.request_id)
        self.outcomes[outcome.request.request_id] = outcome

    def _decode(self) -> None:
        """Give every decoding request its next token. Not interruptible."""
        self.now_s += self._step_s()
        self._last_step_end_s = self.now_s
        for decoding in self._decoding:
            gap_s = self.now_s - decoding.last_token_s
            outcome = decoding.outcome
            decoding.outcome = replace(
                outcome, last_token_s=self.now_s, max_gap_s=max(gap_s, outcome.max_gap_s)
            )
            decoding.last_token_s = self.now_s
            decoding.num_tokens_left -= 1
            if decoding.num_tokens_left == 0:
                self._end(decoding.outcome)
        self._decoding = [d for d in self._decoding if d.num_tokens_left > 0]
        self.decode_ends_s.append(self.now_s)
        self.recorder.num_decode_steps += 1
        self._note(EventKind.COMPLETION)

    # ---- leaving early ----

    def _drop(self, batch_ids: tuple[int, ...]) -> None:
        """Cancel prefills; their requests wait again, the computation done is lost."""
        for batch_id in batch_ids:
            cursor = self._cursors[batch_id]
            self.recorder.on_restart(cursor.prefill)
            for request in self._cancel(cursor):
                restarted = replace(request, num_restarts=request.num_restarts + 1)
                if request.request_id not in self.outcomes:
                    self.waiting.append(restarted)
            self._note(EventKind.ABORT)

    def _leave(self, request_id: str) -> None:
        """End a request wherever it is. A batch with a live member runs on."""
        if request_id in self.outcomes:
            return
        request = self._by_id[request_id].request
        outcome = Outcome(request, math.inf, math.inf, num_preemptions=0, is_aborted=True)
        for decoding in self._decoding:
            if decoding.outcome.request.request_id == request_id:
                outcome = replace(decoding.outcome, last_token_s=math.inf, is_aborted=True)
                self.kv.give_back(request_id)
        self._decoding = [d for d in self._decoding if d.outcome.request.request_id != request_id]
        self.waiting = [r for r in self.waiting if r.request_id != request_id]
        self._coming = [entry for entry in self._coming if entry[2].request_id != request_id]
        heapify(self._coming)
        self.outcomes[request_id] = outcome
        for cursor in list(self._cursors.values()):
            if all(r.request_id in self.outcomes for r in cursor.prefill.requests):
                self._cancel(cursor)
        self._note(EventKind.ABORT)

    def _cancel(self, cursor: _Cursor) -> tuple[PrefillRequest, ...]:
        """Abandon a prefill, give its memory back and return its requests."""
        del self._cursors[cursor.prefill.batch_id]
        if cursor is self._current:
            self._current = None
        cursor.prefill.apply(BatchChange.CANCEL, self.now_s)
        self.recorder.num_cancelled += 1
        for request in cursor.prefill.requests:
            self.kv.give_back(request.request_id)
        return cursor.prefill.requests
