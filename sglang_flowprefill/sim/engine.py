"""A machine with a virtual clock: what the loop drives in place of SGLang.

Time passes only in ``run``, ``decode`` and ``sleep``. Requests come and leave by themselves at
given times; a running prefill notices at its next operator boundary, like a real one.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Any

from sglang_flowprefill.core import EventKind, PrefillBatch, PrefillRequest, Reject
from sglang_flowprefill.loop.engine import (
    Completion,
    DecodeStep,
    DecodingRequest,
    ForwardEnd,
    Shortfall,
)
from sglang_flowprefill.loop.event_sources import EventSources, MemorySource
from sglang_flowprefill.sim.forward_times import ForwardTimes
from sglang_flowprefill.sim.kv_pool import KvPool
from sglang_flowprefill.sim.machine import Machine, chunks_of
from sglang_flowprefill.sim.records import Arrival, FirstToken, Outcome

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
    _times: ForwardTimes | None = None

    @property
    def is_between_forwards(self) -> bool:
        """True while the next chunk has no memory yet."""
        return self._times is None

    @property
    def has_more_chunks(self) -> bool:
        """True if this forward pass is not the last."""
        return bool(self.chunks)

    @property
    def remaining_s(self) -> float:
        """Seconds of this forward pass that are left."""
        times = self._times
        return 0.0 if times is None else times.total_s - times.end_s(self.num_boundaries - 1)

    def begin(self, times: ForwardTimes) -> None:
        """Begin a forward pass."""
        self._times = times
        self.num_boundaries = 0

    def run_until(self, now_s: float, event_s: float) -> tuple[float, bool]:
        """Run from now until the pass notices an event, or to the end.

        Returns:
            The time then, and whether the forward pass has ended.
        """
        times = self._times
        assert times is not None
        first = self.num_boundaries
        done_s = times.end_s(first - 1)
        last = times.num_boundaries - 1
        # At least one operator runs, or an event that nobody takes would stop everything.
        index = last if event_s == math.inf else times.stop_after(event_s - now_s + done_s, first)
        self.num_boundaries = index + 1
        if index == last:
            self._times = None
        return now_s + times.end_s(index) - done_s, index == last


@dataclass(slots=True, eq=False)
class _Decoding:
    """A request past its prefill.

    Attributes:
        request: The request, as it came.
        num_restarts: How often its prefill started over.
        first_token_s: When it got its first token.
        last_token_s: When it got its last.
        num_tokens_left: Tokens that it will still generate.
        num_unknown_tokens: Tokens that it asked for beyond what it will generate.
        num_preemptions: As in its outcome to be.
        max_gap_s: Longest time from one token to the next so far.
    """

    request: PrefillRequest
    first_token_s: float
    last_token_s: float
    num_tokens_left: int
    num_unknown_tokens: int
    num_preemptions: int
    num_restarts: int
    max_gap_s: float = 0.0

    def outcome(self, *, is_aborted: bool = False) -> Outcome:
        """Return what has become of it."""
        return Outcome(
            self.request,
            self.first_token_s,
            math.inf if is_aborted else self.last_token_s,
            self.num_preemptions,
            self.num_restarts,
            self.max_gap_s,
            is_aborted=is_aborted,
        )


class _Running(Sequence[DecodingRequest]):
    """The running requests as the loop sees them; made when somebody looks at one."""

    def __init__(self, decoding: Sequence[_Decoding], kv: KvPool) -> None:
        self._decoding = decoding
        self._kv = kv

    def __len__(self) -> int:
        return len(self._decoding)

    def __iter__(self) -> Iterator[DecodingRequest]:
        return map(self._described, self._decoding)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def _described(self, decoding: _Decoding) -> DecodingRequest:
        return DecodingRequest(
            decoding.request.slo,
            decoding.last_token_s,
            decoding.num_tokens_left + decoding.num_unknown_tokens,
            self._kv.held_by(decoding.request.request_id),
        )


class SimulatedEngine:
    """The machine, its queue and its memory.

    Args:
        machine: Model of what takes how long, and of how much memory there is.
        must_reserve_all: Tells whether a request may start only once all of its memory is free.
        leaps: Run many decode steps at once where nothing else could happen; observers are then
            told of the last ones only.

    Attributes:
        now_s: Simulated time in seconds.
        until_s: Time at which a running prefill stops at its next boundary, whatever happens.
        outcomes: Outcomes of the requests that have ended, by id.
        kv: The KV slots.
        decode_ends_s: End of each decode step that was not leapt over, in seconds.
        first_tokens: All first tokens that nobody has taken away.
        num_decode_steps: All of them.
        busy_s: Seconds in which the device ran something.
        events: What the loop listens to.
    """

    is_closing = False
    is_paused = False
    wants_quiet = False

    def __init__(
        self,
        machine: Machine,
        must_reserve_all: Callable[[PrefillRequest], bool],
        *,
        leaps: bool = False,
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
        self.kv = KvPool(machine.num_kv_tokens, machine.page_tokens)
        self.outcomes: dict[str, Outcome] = {}
        self.decode_ends_s: list[float] = []
        self.first_tokens: list[FirstToken] = []
        self.num_decode_steps = 0
        self.busy_s = 0.0
        self._leaps = leaps
        self._num_context_tokens = 0
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
    def running(self) -> Sequence[DecodingRequest]:
        """Requests past their prefill."""
        return _Running(self._decoding, self.kv)

    @property
    def running_ids(self) -> list[str]:
        """Ids of the requests past their prefill."""
        return [decoding.request.request_id for decoding in self._decoding]

    @property
    def num_coming(self) -> int:
        """Requests that were added and have not arrived yet."""
        return len(self._coming)

    @property
    def is_idle(self) -> bool:
        """True if no request is in the machine; some may come yet."""
        return not (self._waiting or self._prefills or self._decoding)

    @property
    def next_end_s(self) -> float:
        """Time before which nothing ends, whoever may come; infinity with no work.

        What is running ends a forward pass or a decode step then, or a client comes.
        """
        if self.is_idle:
            return self._next_client_s()
        if self._decoding or not self._prefills:
            return self.now_s
        return self.now_s + min(work.remaining_s for work in self._prefills)

    def add(self, arrival: Arrival, come_s: float | None = None) -> None:
        """Let a request come.

        Args:
            arrival: The request.
            come_s: When, if not at its arrival time: it arrived elsewhere first.

        Raises:
            ValueError: Its id has been used, or it does not fit into the machine's memory.
        """
        request = arrival.request
        if request.request_id in self._by_id:
            raise ValueError("every simulated request needs an id of its own")
        capacity = self._machine.num_kv_tokens
        if capacity is not None and arrival.num_kv_tokens > capacity:
            raise ValueError(f"a request needs more than the machine's {capacity} KV slots")
        come_s = request.arrival_s if come_s is None else come_s
        heappush(self._coming, (come_s, len(self._by_id), request))
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

    def has_client(self, now_s: float) -> bool:
        """Tell whether a client comes, or leaves, by this time."""
        return self._next_client_s() <= now_s

    def let_clients_come_and_go(self) -> list[EventKind]:
        """Queue who has come, end who has left; return the events."""
        happened: list[EventKind] = []
        while self._coming and self._coming[0][0] <= self.now_s:
            request = self._with_prefix(heappop(self._coming)[2])
            self._waiting[request.request_id] = request
            self._arrived.append(request)
            happened.append(EventKind.ARRIVAL)
        while self._leaving and self._leaving[0][0] <= self.now_s:
            if self._leave(heappop(self._leaving)[1]):
                happened.append(EventKind.ABORT)
        return happened

    def degrade(self, requests: Sequence[PrefillRequest]) -> None:
        """Have waiting requests served after all others."""
        for request in requests:
            self._waiting[request.request_id] = replace(request, is_degraded=True)

    def refuse(self, refused: Sequence[tuple[PrefillRequest, Reject]]) -> None:
        """End requests at their arrival."""
        for request, _ in refused:
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
            ready, num_missing = self._take_memory(request, is_alone=len(requests) == 1)
            if num_missing and not admitted:
                return Shortfall(num_missing)
            if num_missing:
                break
            del self._waiting[request.request_id]
            admitted.append(ready)
        return self._open(tuple(admitted))

    def _take_memory(
        self, request: PrefillRequest, *, is_alone: bool
    ) -> tuple[PrefillRequest, int]:
        """Take memory for a request; return it with what is cached now, and what is missing."""
        request_id, prefix = request.request_id, self._by_id[request.request_id].prefix
        if prefix:
            self.kv.lock(request_id, prefix)
            request = self._with_prefix(request)
        num_more = self._num_tokens_to_start(request, is_alone=is_alone)
        if prefix:
            num_more = max(num_more - self.kv.held_by(request_id), 0)
        num_missing = self.kv.num_missing(num_more)
        if num_missing:
            self.kv.unlock(request_id)
        else:
            self.kv.take(request_id, num_more)
        return request, num_missing

    def _with_prefix(self, request: PrefillRequest) -> PrefillRequest:
        """Return a request with as much of its prompt cached as there is now; never all of it."""
        arrival = self._by_id[request.request_id]
        if not arrival.prefix:
            return request
        num_tokens = arrival.request.num_uncached_tokens
        num_cached = min(self.kv.num_cached(arrival.prefix), num_tokens - 1)
        if num_cached == request.num_cached_tokens:
            return request
        return replace(
            request, num_cached_tokens=num_cached, num_uncached_tokens=num_tokens - num_cached
        )

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
        start_s = self.now_s
        self.now_s, has_ended = work.run_until(start_s, stop_s)
        if not has_ended:
            self.now_s += self._machine.ack_s
            is_event = event_s <= self.now_s
            self.events.note_yield(
                "simulated event" if is_event else UNTIL, event_s if is_event else self.now_s
            )
        self.busy_s += self.now_s - start_s
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
            self.kv.keep(request.request_id, self._by_id[request.request_id].prefix)
            first_tokens.append(request)
            self.first_tokens.append(FirstToken(self.now_s, request.request_id))
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
        step_s = self._machine.step_s(num_requests, self._num_context_tokens)
        self._pass_steps(1, step_s, step_s)
        ended = [decoding for decoding in self._decoding if not decoding.num_tokens_left]
        for decoding in ended:
            self._end(decoding.outcome())
        if ended:
            self._decoding = [d for d in self._decoding if d.num_tokens_left]
            self._count_context()
        return DecodeStep(num_requests, [Completion(d.request, "length") for d in ended])

    def _pass_steps(self, num_steps: int, duration_s: float, longest_s: float) -> None:
        """Give every decoding request so many tokens.

        Args:
            num_steps: Steps.
            duration_s: Of all of them.
            longest_s: Of the longest, which is the last: contexts grow.
        """
        self.now_s += duration_s
        self.busy_s += duration_s
        self._num_context_tokens += num_steps * len(self._decoding)
        now_s, start_s = self.now_s, self.now_s - duration_s
        for decoding in self._decoding:
            gap_s = start_s - decoding.last_token_s + longest_s
            if gap_s > decoding.max_gap_s:  # noqa: PLR1730 (max() costs a call)
                decoding.max_gap_s = gap_s
            decoding.last_token_s = now_s
            decoding.num_tokens_left -= num_steps
        self.num_decode_steps += num_steps
        if num_steps == 1:
            self.decode_ends_s.append(now_s)

    def _leap(self) -> None:
        """Run at once all the decode steps that nobody could come between.

        Only where the loop would do nothing but decode: nothing waits, nothing is in flight. The
        step in which a request ends or somebody comes is left to the loop.
        """
        stop_s = min(self._next_client_s(), self.until_s)
        num_requests = len(self._decoding)
        num_steps = min(decoding.num_tokens_left for decoding in self._decoding) - 1
        step_s = self._machine.step_s(num_requests, self._num_context_tokens)
        growth_s = (
            self._machine.step_s(num_requests, self._num_context_tokens + num_requests) - step_s
        )
        if stop_s < math.inf:
            num_steps = min(num_steps, _num_steps_within(stop_s - self.now_s, step_s, growth_s))
        if num_steps > 1:
            duration_s = num_steps * step_s + growth_s * num_steps * (num_steps - 1) / 2
            longest_s = step_s + growth_s * (num_steps - 1)
            self._pass_steps(num_steps, duration_s, longest_s)

    def _count_context(self) -> None:
        self._num_context_tokens = sum(
            d.request.num_uncached_tokens
            + d.request.num_cached_tokens
            + self._by_id[d.request.request_id].num_output_tokens
            - d.num_tokens_left
            for d in self._decoding
        )

    def on_idle(self) -> None:
        """No housekeeping here."""

    def on_paused(self) -> None:
        """Never happens here."""

    def after_pass(self) -> None:
        """Leap over decode steps where there is nothing but those."""
        if self._leaps and self._decoding and not (self._waiting or self._prefills):
            self._leap()

    def _next_client_s(self) -> float:
        """Return when the next client comes or leaves."""
        arrival_s = self._coming[0][0] if self._coming else math.inf
        abort_s = self._leaving[0][0] if self._leaving else math.inf
        return min(arrival_s, abort_s)

    def _num_tokens_to_start(self, request: PrefillRequest, *, is_alone: bool) -> int:
        arrival = self._by_id[request.request_id]
        max_tokens = self._machine.max_chunk_tokens
        is_whole = max_tokens is None or request.num_uncached_tokens <= max_tokens
        if max_tokens is None or is_whole or not is_alone or self._must_reserve_all(request):
            return arrival.num_kv_tokens
        return request.num_cached_tokens + max_tokens

    def _open(self, requests: tuple[PrefillRequest, ...]) -> SimulatedPrefill:
        arrivals = [self._by_id[request.request_id] for request in requests]
        chunks = deque(chunks_of(requests, self._machine.max_chunk_tokens))
        num_active = sum(request.num_uncached_tokens for request in chunks[0])
        work = SimulatedPrefill(
            requests,
            chunks,
            slowdown=max(arrival.slowdown for arrival in arrivals),
            held_bytes=self._machine.bytes_per_token * num_active,
            max_new_tokens=max(arrival.num_asked_tokens for arrival in arrivals),
        )
        self._prefills.append(work)
        self._begin_chunk(work)
        return work

    def _begin_chunk(self, work: SimulatedPrefill) -> None:
        work.begin(self._machine.forward(work.chunks.popleft(), work.slowdown))
        work.num_kv_tokens = sum(self.kv.held_by(r.request_id) for r in work.requests)

    def _is_through(self, request: PrefillRequest, batch: PrefillBatch) -> bool:
        """Note a first token; return whether it was the last, too."""
        arrival = self._by_id[request.request_id]
        num_left = arrival.num_output_tokens - 1
        decoding = _Decoding(
            arrival.request,
            self.now_s,
            self.now_s,
            num_left,
            arrival.num_asked_tokens - arrival.num_output_tokens,
            batch.num_preemptions,
            request.num_restarts,
        )
        if num_left == 0:
            self._end(decoding.outcome())
            return True
        self._decoding.append(decoding)
        self._num_context_tokens += request.num_uncached_tokens + request.num_cached_tokens + 1
        return False

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
            if decoding.request.request_id == request_id:
                outcome = decoding.outcome(is_aborted=True)
                self.kv.give_back(request_id)
        self._decoding = [d for d in self._decoding if d.request.request_id != request_id]
        self._count_context()
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


def _num_steps_within(seconds: float, step_s: float, growth_s: float) -> int:
    """Return how many steps fit, of which each takes so much longer than the one before."""
    if step_s <= 0.0:
        return 0
    if growth_s <= 0.0:
        return int(seconds / step_s)
    half = step_s - growth_s / 2
    return int((math.sqrt(half * half + 2 * growth_s * max(seconds, 0.0)) - half) / growth_s)


class _Clients:
    """The clients as a source of events."""

    name = "clients"

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine

    def is_ready(self, now_s: float) -> bool:
        """Tell whether the next client has come by now."""
        return self._engine.has_client(now_s)

    def take(self, now_s: float) -> Iterable[EventKind]:  # noqa: ARG002 (protocol)
        """Queue who has come, end who has left."""
        return self._engine.let_clients_come_and_go()
