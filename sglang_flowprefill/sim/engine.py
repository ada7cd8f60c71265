"""A machine with a virtual clock: what the loop drives in place of SGLang.

Time passes only in ``run``, ``decode`` and ``sleep``. Requests come and leave by themselves at
given times; a running prefill notices at its next operator boundary, like a real one.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import accumulate

from sglang_flowprefill.core import EventKind, PrefillBatch, PrefillRequest
from sglang_flowprefill.loop.engine import (
    Completion,
    DecodeStep,
    DecodingRequest,
    ForwardEnd,
    Shortfall,
)
from sglang_flowprefill.loop.event_sources import EventSources, MemorySource
from sglang_flowprefill.sim.kv_pool import KvPool
from sglang_flowprefill.sim.machine import MachineModel
from sglang_flowprefill.sim.records import Arrival, Outcome

UNTIL = "until"
"""Cause of a yield that no event asked for: the simulation was to run until then."""


@dataclass(slots=True, eq=False)
class SimulatedPrefill:
    """A started prefill: the forward passes to come, and the operators left of this one.

    Attributes:
        requests: Its members.
        chunks: Forward passes that have not begun.
        slowdown: Actual over predicted time.
        num_kv_tokens: KV slots that its members hold.
        held_bytes: Bytes of its activations.
        max_new_tokens: Longest generation of a member, in tokens.
        is_aborted: True once every member has left.
        num_boundaries: Operators that have run in this forward pass.
    """

    requests: tuple[PrefillRequest, ...]
    chunks: deque[tuple[PrefillRequest, ...]]
    slowdown: float
    held_bytes: int
    max_new_tokens: int
    num_kv_tokens: int = 0
    is_aborted: bool = False
    num_boundaries: int = 0
    _ends_s: Sequence[float] | None = None

    @property
    def is_between_forwards(self) -> bool:
        """True while the next chunk has no memory yet."""
        return self._ends_s is None

    @property
    def has_more_chunks(self) -> bool:
        """True if this forward pass is not the last."""
        return bool(self.chunks)

    def begin(self, operators_s: Iterable[float]) -> None:
        """Begin a forward pass of operators that take so many seconds each."""
        self._ends_s = list(accumulate(operators_s))
        self.num_boundaries = 0

    def run_until(self, now_s: float, event_s: float) -> tuple[float, bool]:
        """Run from now to the first boundary at or after an event, or to the end.

        Returns:
            The time then, and whether the forward pass has ended.
        """
        assert self._ends_s is not None
        ends_s, first = self._ends_s, self.num_boundaries
        done_s = ends_s[first - 1] if first else 0.0
        # At least one operator runs, or an event that nobody takes would stop everything.
        index = max(bisect_left(ends_s, event_s - now_s + done_s), first)
        has_ended = index >= len(ends_s) - 1
        if has_ended:
            index, self._ends_s = len(ends_s) - 1, None
        self.num_boundaries = index + 1
        return now_s + ends_s[index] - done_s, has_ended


@dataclass(slots=True, eq=False)
class _Decoding:
    """A request past its prefill."""

    outcome: Outcome
    num_tokens_left: int
    last_token_s: float


class SimulatedEngine:
    """The machine, its queue and its memory.

    Args:
        machine: Model of what takes how long, and of how much memory there is.
        must_reserve_all: Tells whether a request may start only once all of its memory is free.

    Attributes:
        now_s: Simulated time in seconds.
        until_s: Time at which a running prefill stops at its next boundary, whatever happens.
        outcomes: Outcomes of the requests that have ended, by id.
        kv: The KV slots.
        decode_ends_s: End of each decode step, in seconds.
        events: What the loop listens to.
    """

    is_closing = False
    is_paused = False
    wants_quiet = False

    def __init__(
        self, machine: MachineModel, must_reserve_all: Callable[[PrefillRequest], bool]
    ) -> None:
        self._machine = machine
        self._must_reserve_all = must_reserve_all
        self._by_id: dict[str, Arrival] = {}
        self._coming: list[tuple[float, int, PrefillRequest]] = []
        self._leaving: list[tuple[float, str]] = []
        self._arrived: list[PrefillRequest] = []
        self._waiting: dict[str, PrefillRequest] = {}
        self._prefills: list[SimulatedPrefill] = []
        self._decoding: list[_Decoding] = []
        self.now_s = 0.0
        self.until_s = math.inf
        self.kv = KvPool(machine.num_kv_tokens)
        self.outcomes: dict[str, Outcome] = {}
        self.decode_ends_s: list[float] = []
        self.events = EventSources(
            [_Clients(self)],
            MemorySource(lambda: (-float(self.kv.num_used),)),
            self.sleep,
            self.clock,
        )

    def clock(self) -> float:
        """Return the simulated time in seconds."""
        return self.now_s

    @property
    def waiting(self) -> list[PrefillRequest]:
        """Requests that wait for their prefill."""
        return list(self._waiting.values())

    @property
    def running(self) -> list[DecodingRequest]:
        """Requests past their prefill."""
        return [
            DecodingRequest(
                decoding.outcome.request.slo,
                decoding.last_token_s,
                decoding.num_tokens_left,
                self.kv.held_by(decoding.outcome.request.request_id),
            )
            for decoding in self._decoding
        ]

    @property
    def running_ids(self) -> list[str]:
        """Ids of the requests past their prefill."""
        return [decoding.outcome.request.request_id for decoding in self._decoding]

    @property
    def num_coming(self) -> int:
        """Requests that were added and have not arrived yet."""
        return len(self._coming)

    @property
    def is_idle(self) -> bool:
        """True if no request is in the machine; some may come yet."""
        return not (self._waiting or self._prefills or self._decoding)

    def decode_step_s(self, num_requests: int) -> float:
        """Return what a decode step over so many requests takes, in seconds."""
        return self._machine.decode_step_s + num_requests * self._machine.decode_request_s

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

    def sleep(self, timeout_s: float) -> None:
        """Let time pass until somebody comes or leaves, or the timeout; with no work, for ever."""
        event_s = min(self._next_client_s(), self.events.timer.due_s)
        until_s = event_s if self.is_idle else min(event_s, self.now_s + timeout_s)
        if until_s < math.inf:
            self.now_s = max(self.now_s, until_s)

    def take_arrivals(self) -> list[PrefillRequest]:
        """Return the new requests since the last call."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def let_clients_come_and_go(self) -> list[EventKind]:
        """Queue who has come, end who has left; return the events."""
        happened: list[EventKind] = []
        while self._coming and self._coming[0][0] <= self.now_s:
            request = heappop(self._coming)[2]
            self._waiting[request.request_id] = request
            self._arrived.append(request)
            happened.append(EventKind.ARRIVAL)
        while self._leaving and self._leaving[0][0] <= self.now_s:
            if self._leave(heappop(self._leaving)[1]):
                happened.append(EventKind.ABORT)
        return happened

    def degrade(self, request: PrefillRequest) -> PrefillRequest:
        """Have a waiting request served after all others."""
        degraded = replace(request, is_degraded=True)
        self._waiting[request.request_id] = degraded
        return degraded

    def refuse(self, request: PrefillRequest, reason: str, retry_after_s: float) -> None:  # noqa: ARG002
        """End a request at its arrival."""
        del self._waiting[request.request_id]
        self.outcomes[request.request_id] = Outcome(
            request, math.inf, math.inf, num_preemptions=0, is_rejected=True
        )

    def dispatch_held(self) -> None:
        """Nothing is ever held back here."""

    def start(self, requests: Sequence[PrefillRequest]) -> SimulatedPrefill | Shortfall:
        """Take memory for the head and the passengers for which there is any."""
        admitted: list[PrefillRequest] = []
        for request in requests:
            num_tokens = self._num_tokens_to_start(request, is_alone=len(requests) == 1)
            num_missing = self.kv.num_missing(num_tokens)
            if num_missing and not admitted:
                return Shortfall(num_missing)
            if num_missing:
                break
            self.kv.take(request.request_id, num_tokens)
            admitted.append(self._waiting.pop(request.request_id))
        return self._open(tuple(admitted))

    def start_next_chunk(self, work: SimulatedPrefill) -> Shortfall | None:
        """Take memory for the next forward pass of a prompt in chunks."""
        (request, *_), chunk = work.requests, work.chunks[0]
        num_needed = chunk[0].num_cached_tokens + chunk[0].num_uncached_tokens
        if len(work.chunks) == 1:
            num_needed = self._by_id[request.request_id].num_kv_tokens
        num_more = max(num_needed - self.kv.held_by(request.request_id), 0)
        num_missing = self.kv.num_missing(num_more)
        if num_missing:
            return Shortfall(num_missing)
        self.kv.take(request.request_id, num_more)
        self._begin_chunk(work)
        return None

    def run(self, work: SimulatedPrefill, *, is_preemptible: bool) -> bool:
        """Run a prefill until its forward pass ends or somebody comes, leaves or is due."""
        event_s = (
            min(self._next_client_s(), self.events.timer.due_s) if is_preemptible else math.inf
        )
        stop_s = min(event_s, self.until_s)
        self.now_s, has_ended = work.run_until(self.now_s, stop_s)
        if not has_ended:
            is_event = event_s <= self.now_s
            self.events.note_yield(
                "simulated event" if is_event else UNTIL, event_s if is_event else self.now_s
            )
        return has_ended

    def end_forward(self, work: SimulatedPrefill, batch: PrefillBatch) -> ForwardEnd:
        """Let the members decode whose prefill has ended; the aborted ones give memory back."""
        if work.has_more_chunks:
            return ForwardEnd()
        self._prefills.remove(work)
        first_tokens, completions = [], []
        for request in work.requests:
            if request.request_id in self.outcomes:
                self.kv.give_back(request.request_id)
                continue
            first_tokens.append(request)
            if self._is_through(request, batch):
                completions.append(Completion(request, "length"))
        return ForwardEnd(first_tokens, completions)

    def requeue(self, work: SimulatedPrefill) -> None:
        """Let the members of a dropped prefill wait again."""
        for request in self._give_back(work):
            if request.request_id not in self.outcomes:
                self._waiting[request.request_id] = replace(
                    request, num_restarts=request.num_restarts + 1
                )

    def release_aborted(self, work: SimulatedPrefill) -> None:
        """Give the memory of a prefill back whose members have all left."""
        self._give_back(work)

    def release_failed(self, work: SimulatedPrefill, error: Exception) -> None:  # noqa: ARG002
        """Never happens here: a simulated forward pass does not raise."""
        raise AssertionError("a simulated forward pass raised") from error

    def has_decode_memory(self) -> bool:
        """Tell that there is memory: what a request will generate is taken before it starts."""
        return True

    def decode(self) -> DecodeStep:
        """Give every decoding request its next token. Not interruptible."""
        num_requests = len(self._decoding)
        self.now_s += self.decode_step_s(num_requests)
        completions = []
        for decoding in self._decoding:
            self._add_token(decoding)
            if decoding.num_tokens_left == 0:
                self._end(decoding.outcome)
                completions.append(Completion(decoding.outcome.request, "length"))
        self._decoding = [d for d in self._decoding if d.num_tokens_left > 0]
        self.decode_ends_s.append(self.now_s)
        return DecodeStep(num_requests, completions)

    def on_idle(self) -> None:
        """No housekeeping here."""

    def on_paused(self) -> None:
        """Never happens here."""

    def after_pass(self) -> None:
        """No invariants but those of ``KvPool``, which it checks itself."""

    def _next_client_s(self) -> float:
        """Return when the next client comes or leaves."""
        arrival_s = self._coming[0][0] if self._coming else math.inf
        abort_s = self._leaving[0][0] if self._leaving else math.inf
        return min(arrival_s, abort_s)

    def _num_tokens_to_start(self, request: PrefillRequest, *, is_alone: bool) -> int:
        arrival = self._by_id[request.request_id]
        (first, *later) = self._machine.chunks((request,))
        if not later or not is_alone or self._must_reserve_all(request):
            return arrival.num_kv_tokens
        return first[0].num_cached_tokens + first[0].num_uncached_tokens

    def _open(self, requests: tuple[PrefillRequest, ...]) -> SimulatedPrefill:
        arrivals = [self._by_id[request.request_id] for request in requests]
        chunks = deque(self._machine.chunks(requests))
        num_active = sum(request.num_uncached_tokens for request in chunks[0])
        work = SimulatedPrefill(
            requests,
            chunks,
            slowdown=max(arrival.slowdown for arrival in arrivals),
            held_bytes=self._machine.bytes_per_token * num_active,
            max_new_tokens=max(arrival.num_output_tokens for arrival in arrivals),
        )
        self._prefills.append(work)
        self._begin_chunk(work)
        return work

    def _begin_chunk(self, work: SimulatedPrefill) -> None:
        work.begin(self._machine.operators_s(work.chunks.popleft(), work.slowdown))
        work.num_kv_tokens = sum(self.kv.held_by(r.request_id) for r in work.requests)

    def _is_through(self, request: PrefillRequest, batch: PrefillBatch) -> bool:
        """Note a first token; return whether it was the last, too."""
        arrival = self._by_id[request.request_id]
        outcome = Outcome(
            arrival.request, self.now_s, self.now_s, batch.num_preemptions, request.num_restarts
        )
        num_left = arrival.num_output_tokens - 1
        if num_left == 0:
            self._end(outcome)
            return True
        self._decoding.append(_Decoding(outcome, num_left, self.now_s))
        return False

    def _add_token(self, decoding: _Decoding) -> None:
        outcome = decoding.outcome
        gap_s = self.now_s - decoding.last_token_s
        decoding.outcome = replace(
            outcome, last_token_s=self.now_s, max_gap_s=max(gap_s, outcome.max_gap_s)
        )
        decoding.last_token_s = self.now_s
        decoding.num_tokens_left -= 1

    def _end(self, outcome: Outcome) -> None:
        self.kv.give_back(outcome.request.request_id)
        self.outcomes[outcome.request.request_id] = outcome

    def _leave(self, request_id: str) -> bool:
        """End a request wherever it is; return False if it had ended. Its batch may run on."""
        if request_id in self.outcomes:
            return False
        request = self._by_id[request_id].request
        outcome = Outcome(request, math.inf, math.inf, num_preemptions=0, is_aborted=True)
        for decoding in self._decoding:
            if decoding.outcome.request.request_id == request_id:
                outcome = replace(decoding.outcome, last_token_s=math.inf, is_aborted=True)
                self.kv.give_back(request_id)
        self._decoding = [d for d in self._decoding if d.outcome.request.request_id != request_id]
        self._waiting.pop(request_id, None)
        self._coming = [entry for entry in self._coming if entry[2].request_id != request_id]
        heapify(self._coming)
        self.outcomes[request_id] = outcome
        for work in self._prefills:
            work.is_aborted = all(r.request_id in self.outcomes for r in work.requests)
        return True

    def _give_back(self, work: SimulatedPrefill) -> tuple[PrefillRequest, ...]:
        self._prefills.remove(work)
        for request in work.requests:
            self.kv.give_back(request.request_id)
        return work.requests


class _Clients:
    """The clients as a source of events."""

    name = "clients"

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine

    def is_ready(self, now_s: float) -> bool:
        """Never asked: the engine knows when the next client comes."""
        raise NotImplementedError

    def take(self, now_s: float) -> Iterable[EventKind]:  # noqa: ARG002 (protocol)
        """Queue who has come, end who has left."""
        return self._engine.let_clients_come_and_go()
