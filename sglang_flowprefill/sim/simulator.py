"""The event loop of ``adapter/event_loop.py`` on a simulated machine.

Same rules: a round only after an event, one decision until the next round, a prefill yields at
the first boundary after an event, a decode step is due ``tpot_slo_s`` after the last one. A
decision for which there is no memory is noted and decided again within the same round; what was
noted is forgotten when memory may have come free.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sglang_flowprefill.core import (
    BlockedRequest,
    Decision,
    DecodeView,
    DropBatches,
    EventKind,
    PrefillBatch,
    PrefillRequest,
    PrefillScheduler,
    ResumeBatch,
    RunDecode,
    SchedulerStatistics,
    SchedulerView,
    StartBatch,
    StatisticsRecorder,
    Wait,
)
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.sim.kv_pool import KvPool
from sglang_flowprefill.sim.machine import MachineModel


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as it will really behave.

    Attributes:
        request: What the policy knows of it.
        num_output_tokens: Tokens it wants, the first included.
        slowdown: Actual over predicted prefill time; the worst member's holds for a batch.
    """

    request: PrefillRequest
    num_output_tokens: int = 1
    slowdown: float = 1.0

    @property
    def num_kv_tokens(self) -> int:
        """KV slots that it holds in the end."""
        request = self.request
        return request.num_uncached_tokens + request.num_cached_tokens + self.num_output_tokens


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        request: The request.
        first_token_s: Time of its first token.
        last_token_s: Time of its last token.
        num_preemptions: How often other work was put in front of its unfinished prefill, since
            its last start.
        num_restarts: How often its prefill was dropped and started over.
    """

    request: PrefillRequest
    first_token_s: float
    last_token_s: float
    num_preemptions: int
    num_restarts: int = 0

    @property
    def ttft_s(self) -> float:
        """Seconds from arrival to first token."""
        return self.first_token_s - self.request.arrival_s


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What happened.

    Attributes:
        outcomes: One per arrival, in the order given.
        blocking_s: For each yield, seconds from the event that asked for it to the boundary.
        decode_ends_s: When each decode step ended.
        max_kv_tokens: Most KV slots that were in use at once.
        statistics: As a server would report them.
    """

    outcomes: tuple[Outcome, ...]
    blocking_s: tuple[float, ...]
    decode_ends_s: tuple[float, ...]
    max_kv_tokens: int
    statistics: SchedulerStatistics


def simulate(
    arrivals: Iterable[Arrival],
    scheduler: PrefillScheduler,
    machine: MachineModel,
    *,
    tpot_slo_s: float = 0.2,
) -> SimulationResult:
    """Serve all arrivals to their last token.

    Args:
        arrivals: Requests in any order.
        scheduler: The policy. Its predictor may differ from the machine's cost.
        machine: What takes how long, and how much memory there is.
        tpot_slo_s: A decode step is due this many seconds after the last.

    Raises:
        ValueError: Two requests share an id, or one does not fit into the machine's memory.
    """
    given = list(arrivals)
    if len({arrival.request.request_id for arrival in given}) != len(given):
        raise ValueError("every simulated request needs an id of its own")
    capacity = math.inf if machine.num_kv_tokens is None else machine.num_kv_tokens
    if any(arrival.num_kv_tokens > capacity for arrival in given):
        raise ValueError(f"a request needs more than the machine's {capacity} KV slots")
    loop = _Loop(given, scheduler, machine, tpot_slo_s)
    loop.run()
    return SimulationResult(
        outcomes=tuple(loop.outcomes[arrival.request.request_id] for arrival in given),
        blocking_s=tuple(loop.blocking_s),
        decode_ends_s=tuple(loop.decode_ends_s),
        max_kv_tokens=loop.kv.max_used,
        statistics=loop.recorder.statistics(),
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

    prefilled: Outcome
    num_tokens_left: int


class _Loop:
    def __init__(
        self,
        arrivals: list[Arrival],
        scheduler: PrefillScheduler,
        machine: MachineModel,
        tpot_slo_s: float,
    ) -> None:
        self._scheduler = scheduler
        self._machine = machine
        self._tpot_slo_s = tpot_slo_s
        self._by_id = {arrival.request.request_id: arrival for arrival in arrivals}
        self._coming = deque(sorted((a.request for a in arrivals), key=lambda r: r.arrival_s))
        self._now_s = 0.0
        self._has_new_event = False
        self._decision: Decision = Wait("start")
        self._waiting: list[PrefillRequest] = []
        self._blocked: BlockedRequest | None = None
        self._cursors: dict[int, _Cursor] = {}
        self._current: _Cursor | None = None
        self._decoding: list[_Decoding] = []
        self._decode_due_s = 0.0
        self._review_s = math.inf
        self._next_batch_id = 0
        self.kv = KvPool(machine.num_kv_tokens)
        self.recorder = StatisticsRecorder()
        self.outcomes: dict[str, Outcome] = {}
        self.blocking_s: list[float] = []
        self.decode_ends_s: list[float] = []

    def run(self) -> None:
        while self._coming or self._waiting or self._cursors or self._decoding:
            self._collect_events()
            if self._has_new_event:
                self._decision = self._run_round()
            self._carry_out(self._decision)

    # ---- events and rounds ----

    def _collect_events(self) -> None:
        while self._coming and self._coming[0].arrival_s <= self._now_s:
            self._waiting.append(self._coming.popleft())
            self._note(EventKind.ARRIVAL)
        if self._now_s >= self._next_timer_s():
            self._note(EventKind.TIMER)

    def _note(self, kind: EventKind) -> None:
        self._has_new_event = True
        self.recorder.num_events[kind] += 1
        if kind in (EventKind.COMPLETION, EventKind.ABORT):
            self._forget_blocked()

    def _forget_blocked(self) -> None:
        """Memory may have come free: whoever lacked some may try again."""
        self._blocked = None
        for cursor in self._cursors.values():
            cursor.prefill.num_missing_tokens = 0

    def _run_round(self) -> Decision:
        self._has_new_event = False
        self.recorder.num_rounds += 1
        return self._decide()

    def _decide(self) -> Decision:
        view = SchedulerView(
            waiting=tuple(self._waiting),
            batches=[cursor.prefill for cursor in self._cursors.values()],
            current=None if self._current is None else self._current.prefill,
            decode=DecodeView(self._decode_due_s) if self._decoding else None,
            blocked=self._blocked,
        )
        decision = self._scheduler.decide(view, self._now_s)
        self._review_s = decision.review_s if isinstance(decision, ResumeBatch) else math.inf
        return decision

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
                assert self._coming, "the policy waits although there is work"
                self._now_s = max(self._now_s, self._coming[0].arrival_s)

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
                    self._decision = self._decide()
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
            self._waiting.remove(request)
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
            self._decision = self._decide()
            return
        if self._current is not None and self._current is not cursor:
            self._current.prefill.num_preemptions += 1
            self.recorder.num_preemptions += 1
        self._current = cursor
        self._decision = ResumeBatch(cursor.prefill.batch_id, "no event since the last round")
        cursor.prefill.apply(BatchChange.RESUME, self._now_s)
        event_s = self._next_event_s()
        while cursor.operators_s:
            self._now_s += cursor.operators_s.popleft()
            if cursor.is_finished:
                cursor.prefill.apply(BatchChange.FINISH, self._now_s)
                self._finish(cursor.prefill)
            elif event_s <= self._now_s:
                cursor.prefill.apply(BatchChange.YIELD, self._now_s)
                self.blocking_s.append(self._now_s - event_s)
                return
            elif not cursor.operators_s and not self._open_chunk(cursor):
                cursor.prefill.apply(BatchChange.YIELD, self._now_s)
                self._decision = self._decide()

    def _next_event_s(self) -> float:
        """Time of the next event that a running prefill has to notice."""
        arrival_s = self._coming[0].arrival_s if self._coming else math.inf
        return min(arrival_s, self._next_timer_s())

    def _next_timer_s(self) -> float:
        return min(self._decode_due_s, self._review_s) if self._decoding else self._review_s

    def _finish(self, prefill: PrefillBatch) -> None:
        del self._cursors[prefill.batch_id]
        self._current = None
        if not self._decoding:
            self._decode_due_s = self._now_s + self._tpot_slo_s
        for request in prefill.requests:
            self.recorder.on_first_token(request, self._now_s)
            arrival = self._by_id[request.request_id]
            outcome = Outcome(
                arrival.request,
                self._now_s,
                self._now_s,
                prefill.num_preemptions,
                request.num_restarts,
            )
            if arrival.num_output_tokens > 1:
                self._decoding.append(_Decoding(outcome, arrival.num_output_tokens - 1))
            else:
                self._end(outcome)
        self.recorder.num_prefills += 1
        self._note(EventKind.COMPLETION)

    def _end(self, outcome: Outcome) -> None:
        self.kv.give_back(outcome.request.request_id)
        self.outcomes[outcome.request.request_id] = outcome

    def _decode(self) -> None:
        """Give every decoding request its next token. Not interruptible."""
        self._now_s += self._machine.decode_step_s
        self._decode_due_s = self._now_s + self._tpot_slo_s
        for decoding in self._decoding:
            decoding.num_tokens_left -= 1
            if decoding.num_tokens_left == 0:
                self._end(replace(decoding.prefilled, last_token_s=self._now_s))
        self._decoding = [d for d in self._decoding if d.num_tokens_left > 0]
        self.decode_ends_s.append(self._now_s)
        self.recorder.num_decode_steps += 1
        self._note(EventKind.COMPLETION)

    def _drop(self, batch_ids: tuple[int, ...]) -> None:
        """Cancel prefills; their requests wait again, the computation done is lost."""
        for batch_id in batch_ids:
            cursor = self._cursors.pop(batch_id)
            if cursor is self._current:
                self._current = None
            cursor.prefill.apply(BatchChange.CANCEL, self._now_s)
            self.recorder.num_cancelled += 1
            self.recorder.on_restart(cursor.prefill)
            for request in cursor.prefill.requests:
                self.kv.give_back(request.request_id)
                self._waiting.append(replace(request, num_restarts=request.num_restarts + 1))
        self._note(EventKind.ABORT)
