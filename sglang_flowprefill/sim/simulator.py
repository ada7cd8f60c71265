"""The event loop of ``adapter/event_loop.py`` on a simulated machine.

Same rules: a round only after an event, one decision until the next round, a prefill yields at
the first boundary after an event, a decode step is due ``tpot_slo_s`` after the last one.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sglang_flowprefill.core import (
    Decision,
    DecodeView,
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        request: The request.
        first_token_s: Time of its first token.
        last_token_s: Time of its last token.
        num_preemptions: How often other work was put in front of its unfinished prefill.
    """

    request: PrefillRequest
    first_token_s: float
    last_token_s: float
    num_preemptions: int

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
        statistics: As a server would report them.
    """

    outcomes: tuple[Outcome, ...]
    blocking_s: tuple[float, ...]
    decode_ends_s: tuple[float, ...]
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
        machine: What takes how long.
        tpot_slo_s: A decode step is due this many seconds after the last.

    Raises:
        ValueError: Two requests share an id.
    """
    given = list(arrivals)
    if len({arrival.request.request_id for arrival in given}) != len(given):
        raise ValueError("every simulated request needs an id of its own")
    loop = _Loop(given, scheduler, machine, tpot_slo_s)
    loop.run()
    return SimulationResult(
        outcomes=tuple(loop.outcomes[arrival.request.request_id] for arrival in given),
        blocking_s=tuple(loop.blocking_s),
        decode_ends_s=tuple(loop.decode_ends_s),
        statistics=loop.recorder.statistics(),
    )


@dataclass(slots=True, eq=False)
class _Cursor:
    """A started prefill and the operators it still has to run."""

    prefill: PrefillBatch
    operators_s: deque[float]


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
        self._cursors: dict[int, _Cursor] = {}
        self._current: _Cursor | None = None
        self._decoding: list[_Decoding] = []
        self._decode_due_s = 0.0
        self._next_batch_id = 0
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
        if self._decoding and self._now_s >= self._decode_due_s:
            self._note(EventKind.TIMER)

    def _note(self, kind: EventKind) -> None:
        self._has_new_event = True
        self.recorder.num_events[kind] += 1

    def _run_round(self) -> Decision:
        self._has_new_event = False
        self.recorder.num_rounds += 1
        view = SchedulerView(
            waiting=tuple(self._waiting),
            batches=[cursor.prefill for cursor in self._cursors.values()],
            current=None if self._current is None else self._current.prefill,
            decode=DecodeView(self._decode_due_s) if self._decoding else None,
        )
        return self._scheduler.decide(view, self._now_s)

    # ---- carrying out ----

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case StartBatch():
                self._resume(self._open_cursor(decision.requests))
            case ResumeBatch():
                self._resume(self._cursors[decision.batch_id])
            case RunDecode():
                self._decode()
            case Wait():
                assert self._coming, "the policy waits although there is work"
                self._now_s = max(self._now_s, self._coming[0].arrival_s)

    def _open_cursor(self, requests: tuple[PrefillRequest, ...]) -> _Cursor:
        for request in requests:
            self._waiting.remove(request)
        slowdown = max(self._by_id[request.request_id].slowdown for request in requests)
        cursor = _Cursor(
            PrefillBatch(self._next_batch_id, requests, self._scheduler.predict_s(requests)),
            deque(self._machine.operators_s(requests, slowdown)),
        )
        self._cursors[self._next_batch_id] = cursor
        self._next_batch_id += 1
        return cursor

    def _resume(self, cursor: _Cursor) -> None:
        """Run a prefill until it ends or an event comes."""
        if self._current is not None and self._current is not cursor:
            self._current.prefill.num_preemptions += 1
            self.recorder.num_preemptions += 1
        self._current = cursor
        self._decision = ResumeBatch(cursor.prefill.batch_id, "no event since the last round")
        cursor.prefill.apply(BatchChange.RESUME, self._now_s)
        event_s = self._next_event_s()
        while cursor.operators_s:
            self._now_s += cursor.operators_s.popleft()
            if cursor.operators_s and event_s <= self._now_s:
                cursor.prefill.apply(BatchChange.YIELD, self._now_s)
                self.blocking_s.append(self._now_s - event_s)
                return
        cursor.prefill.apply(BatchChange.FINISH, self._now_s)
        self._finish(cursor.prefill)

    def _next_event_s(self) -> float:
        """Time of the next event that a running prefill has to notice."""
        arrival_s = self._coming[0].arrival_s if self._coming else math.inf
        return min(arrival_s, self._decode_due_s) if self._decoding else arrival_s

    def _finish(self, prefill: PrefillBatch) -> None:
        del self._cursors[prefill.batch_id]
        self._current = None
        if not self._decoding:
            self._decode_due_s = self._now_s + self._tpot_slo_s
        for request in prefill.requests:
            self.recorder.on_first_token(request, self._now_s)
            outcome = Outcome(request, self._now_s, self._now_s, prefill.num_preemptions)
            num_tokens_left = self._by_id[request.request_id].num_output_tokens - 1
            if num_tokens_left > 0:
                self._decoding.append(_Decoding(outcome, num_tokens_left))
            else:
                self.outcomes[request.request_id] = outcome
        self.recorder.num_prefills += 1
        self._note(EventKind.COMPLETION)

    def _decode(self) -> None:
        """Give every decoding request its next token. Not interruptible."""
        self._now_s += self._machine.decode_step_s
        self._decode_due_s = self._now_s + self._tpot_slo_s
        for decoding in self._decoding:
            decoding.num_tokens_left -= 1
            if decoding.num_tokens_left == 0:
                request_id = decoding.prefilled.request.request_id
                self.outcomes[request_id] = replace(decoding.prefilled, last_token_s=self._now_s)
        self._decoding = [d for d in self._decoding if d.num_tokens_left > 0]
        self.decode_ends_s.append(self._now_s)
        self.recorder.num_decode_steps += 1
        self._note(EventKind.COMPLETION)
