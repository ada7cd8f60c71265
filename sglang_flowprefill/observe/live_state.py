"""What a watcher may ask of a running scheduler, kept where another thread can read it.

The scheduler's thread writes, at no more than the price of appending to bounded queues; the thread
of ``state_socket.py`` takes snapshots. No lock: a writer replaces a whole value or adds one entry,
and a reader copies a container in one step of the interpreter (``list``, ``tuple``) before it looks
at its entries. Two numbers of a snapshot may therefore be a moment apart, never half written.

The waiting queue is read from the view of the last scheduling round: SGLang's own queue is taken
apart while a batch is formed.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sglang_flowprefill import __version__
from sglang_flowprefill.api.state import (
    BlockingState,
    DecodeSlice,
    PredictionState,
    PrefillSlice,
    PrefillState,
    RoundState,
    ServerState,
    SloClassState,
    WaitingState,
)
from sglang_flowprefill.core import (
    BatchState,
    ClassAttainment,
    PredictionError,
    PrefillBatch,
    PrefillRequest,
)
from sglang_flowprefill.loop.inflight import AnyCursor, InflightTable
from sglang_flowprefill.loop.observer import Observer, Round
from sglang_flowprefill.loop.statistics import StatisticsObserver
from sglang_flowprefill.observe.timeline import CHUNK_FINISHED

_HISTORY_S = 10.0
_MAX_HISTORY = 500  # entries of each kind
_MAX_BLOCKING = 512
_MAX_WAITING = 100


class LiveState(Observer):
    """The present and the last seconds of one scheduler.

    Args:
        policy: Name of the policy.
        granularity: Where prefills may be suspended.
        ttft_slo_ms: Objectives of the known SLO classes, in milliseconds.
        clock: The scheduler's time in seconds.
        inflight: The table of prefills in flight; it is read, in any thread.
    """

    def __init__(
        self,
        policy: str,
        granularity: str,
        ttft_slo_ms: Mapping[str, float],
        clock: Callable[[], float],
        inflight: InflightTable[Any],
    ) -> None:
        self._policy = policy
        self._granularity = granularity
        self._ttft_slo_ms = ttft_slo_ms
        self._clock = clock
        self._started_s = clock()
        self._inflight = inflight
        self._slice_start_s: float | None = None  # of the prefill that runs
        self._waiting: Sequence[PrefillRequest] = ()
        self._num_running = 0
        self._prediction: PredictionError | None = None
        self._slices: deque[PrefillSlice] = deque(maxlen=_MAX_HISTORY)
        self._rounds: deque[RoundState] = deque(maxlen=_MAX_HISTORY)
        self._decodes: deque[DecodeSlice] = deque(maxlen=_MAX_HISTORY)
        self._blocking_s: deque[float] = deque(maxlen=_MAX_BLOCKING)

    def on_round(self, round_: Round) -> None:
        """Keep a round, and the queue that it saw, which nobody changes afterwards."""
        duration_s = round_.end_s - round_.start_s
        cause, decision = round_.events[0].kind.value, type(round_.decision).__name__
        self._rounds.append(RoundState(round_.start_s, cause, decision, duration_s))
        self._waiting = round_.view.waiting
        self._num_running = round_.num_running

    def on_resume(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """Begin a slice."""
        self._slice_start_s = now_s

    def on_yield(self, cursor: AnyCursor, now_s: float, cause: str, blocking_s: float) -> None:
        """End a slice at a boundary."""
        self._blocking_s.append(blocking_s)
        self._end_slice(cursor.prefill, now_s, "yield")

    def on_chunk_end(self, cursor: AnyCursor, now_s: float) -> None:
        """End the last slice of a forward pass."""
        self._end_slice(cursor.prefill, now_s, CHUNK_FINISHED)

    def on_prefill_end(self, cursor: AnyCursor, now_s: float) -> None:
        """End the last slice of a prefill."""
        self._end_slice(cursor.prefill, now_s, "finished")

    def on_failure(self, cursor: AnyCursor, now_s: float, error: Exception) -> None:
        """End a slice whose forward pass raised."""
        self._end_slice(cursor.prefill, now_s, "failed")

    def on_decode(self, start_s: float, end_s: float, num_requests: int) -> None:
        """Keep a decode step."""
        self._decodes.append(DecodeSlice(start_s, end_s, num_requests))

    def on_prediction(self, error: PredictionError) -> None:
        """Keep how wrong recent predictions were."""
        self._prediction = error

    def _end_slice(self, prefill: PrefillBatch, now_s: float, end: str) -> None:
        start_s, self._slice_start_s = self._slice_start_s, None
        if start_s is not None:
            class_name = prefill.requests[0].slo.class_name
            self._slices.append(PrefillSlice(prefill.batch_id, class_name, start_s, now_s, end))

    def snapshot(self, counted: StatisticsObserver) -> ServerState:
        """Return the picture of this moment. May be called in any thread.

        Args:
            counted: The statistics, which this reads beside its own books.
        """
        now_s, statistics = self._clock(), counted.statistics()
        cursors = list(self._inflight)
        started = {request.request_id for c in cursors for request in c.prefill.requests}
        waiting = [r for r in self._waiting if r.request_id not in started]
        oldest_s = now_s - _HISTORY_S
        rounds = [entry for entry in list(self._rounds) if entry.time_s >= oldest_s]
        return ServerState(
            version=__version__,
            policy=self._policy,
            granularity=self._granularity,
            time_s=now_s,
            time_unix_s=time.time(),
            started_s=self._started_s,
            num_rounds=statistics.num_rounds,
            num_events={kind.value: n for kind, n in statistics.num_events.items()},
            num_preemptions=statistics.num_preemptions,
            num_resumes=statistics.num_resumes,
            num_prefills=statistics.num_prefills,
            num_cancelled=statistics.num_cancelled,
            num_restarts=statistics.num_restarts,
            num_decode_steps=statistics.num_decode_steps,
            num_waiting=len(waiting),
            num_decoding=self._num_running,
            suspended_bytes=sum(prefill.held_bytes for prefill in self._inflight.suspended()),
            rounds_per_s=_rate(rounds, now_s, self._started_s),
            history_s=_HISTORY_S,
            classes=self._classes(counted, statistics.attainment, waiting),
            waiting=[_waiting(request, now_s) for request in waiting[:_MAX_WAITING]],
            prefills=[_prefill(cursor, now_s) for cursor in cursors],
            slices=[entry for entry in list(self._slices) if entry.end_s >= oldest_s],
            rounds=rounds,
            decodes=[entry for entry in list(self._decodes) if entry.end_s >= oldest_s],
            blocking=_blocking(list(self._blocking_s)),
            prediction=_prediction(self._prediction),
        )

    def _classes(
        self,
        counted: StatisticsObserver,
        attainment: Mapping[str, ClassAttainment],
        waiting: list[PrefillRequest],
    ) -> list[SloClassState]:
        num_waiting = Counter(request.slo.class_name for request in waiting)
        num_arrived = dict(counted.num_arrived)
        names = dict.fromkeys([*self._ttft_slo_ms, *num_arrived, *attainment])
        return [
            SloClassState(
                name,
                self._ttft_slo_ms.get(name),
                num_arrived=num_arrived.get(name, 0),
                num_waiting=num_waiting[name],
                num_finished=attainment.get(name, _NOTHING).num_finished,
                num_attained=attainment.get(name, _NOTHING).num_attained,
                num_rejected=counted.num_rejected[name],
                num_degraded=counted.num_degraded[name],
            )
            for name in names
        ]


_NOTHING = ClassAttainment()


def _rate(rounds: list[RoundState], now_s: float, started_s: float) -> float:
    """Return rounds a second, over as much of the history as there is."""
    if not rounds:
        return 0.0
    is_cut = len(rounds) == _MAX_HISTORY
    span_s = now_s - rounds[0].time_s if is_cut else min(_HISTORY_S, now_s - started_s)
    return len(rounds) / max(span_s, 1e-3)


def _waiting(request: PrefillRequest, now_s: float) -> WaitingState:
    return WaitingState(
        request.request_id,
        request.slo.class_name,
        request.num_uncached_tokens,
        waited_s=now_s - request.arrival_s,
        slack_s=request.deadline_s - now_s,
    )


def _prefill(cursor: AnyCursor, now_s: float) -> PrefillState:
    prefill = cursor.prefill
    requests = prefill.requests
    return PrefillState(
        prefill.batch_id,
        [request.request_id for request in requests],
        requests[0].slo.class_name,
        "running" if prefill.state is BatchState.RUNNING else "suspended",
        num_tokens=sum(request.num_uncached_tokens for request in cursor.started_as),
        num_boundaries=cursor.work.num_boundaries,
        predicted_s=prefill.predicted_s,
        run_s=prefill.run_s_at(now_s),
        since_s=prefill.changed_s,
        slack_s=requests[0].deadline_s - now_s,
        num_preemptions=prefill.num_preemptions,
        held_bytes=prefill.held_bytes,
        is_out_of_memory=prefill.num_missing_tokens > 0,
    )


def _blocking(seconds: list[float]) -> BlockingState:
    if not seconds:
        return BlockingState(0, 0.0, 0.0, 0.0)
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return BlockingState(
        len(ordered), ordered[round(0.5 * last)], ordered[round(0.99 * last)], ordered[last]
    )


def _prediction(error: PredictionError | None) -> PredictionState | None:
    if error is None:
        return None
    return PredictionState(error.num_observations, error.median_absolute, error.bias)
