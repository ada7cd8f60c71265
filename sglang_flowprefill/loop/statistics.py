"""The statistics of a loop, kept by an observer like any other."""

from collections import Counter

from sglang_flowprefill.core import (
    ClassAttainment,
    Degrade,
    EventKind,
    LoopStatistics,
    PrefillRequest,
    Reject,
    StatisticsRecorder,
)
from sglang_flowprefill.loop.inflight import AnyCursor
from sglang_flowprefill.loop.observer import Observer, Round


class StatisticsObserver(Observer):
    """Counts what happens.

    Attributes:
        num_arrived: New requests by SLO class.
        num_rejected: Requests refused at arrival by SLO class.
        num_degraded: Requests put behind all others at arrival by SLO class.
    """

    def __init__(self) -> None:
        self._recorder = StatisticsRecorder()
        self.num_arrived: Counter[str] = Counter()
        self.num_rejected: Counter[str] = Counter()
        self.num_degraded: Counter[str] = Counter()

    def statistics(self) -> LoopStatistics:
        """Return a frozen snapshot. May be called in any thread."""
        return self._recorder.statistics()

    def on_event(self, kind: EventKind) -> None:
        """Count an event."""
        self._recorder.num_events[kind] += 1

    def on_arrival(self, request: PrefillRequest) -> None:
        """Count a new request."""
        self.num_arrived[request.slo.class_name] += 1

    def on_not_admitted(self, request: PrefillRequest, verdict: Degrade | Reject) -> None:
        """Count a request that was refused or put last."""
        counter = self.num_rejected if isinstance(verdict, Reject) else self.num_degraded
        counter[request.slo.class_name] += 1

    def on_round(self, round_: Round) -> None:
        """Count a round by its cause."""
        self._recorder.num_rounds_by_cause[round_.events[0].kind] += 1

    def on_preemption(
        self,
        preempted: AnyCursor,
        by: AnyCursor,
        now_s: float,
        reason: str,
    ) -> None:
        """Count a preemption."""
        self._recorder.num_preemptions += 1

    def on_resume(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """Count a prefill that goes on."""
        self._recorder.on_resume(cursor.prefill)

    def on_prefill_end(self, cursor: AnyCursor, now_s: float) -> None:
        """Count a prefill that ended."""
        self._recorder.num_prefills += 1

    def on_cancel(self, cursor: AnyCursor, now_s: float) -> None:
        """Count a prefill whose requests were all aborted."""
        self._recorder.num_cancelled += 1

    def on_failure(self, cursor: AnyCursor, now_s: float, error: Exception) -> None:
        """Count a forward pass that raised."""
        self._recorder.num_failed += 1

    def on_drop(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """Count a prefill that was given up for its memory."""
        self._recorder.on_drop(cursor.prefill)

    def on_first_token(self, request: PrefillRequest, now_s: float) -> None:
        """Count a first token, and whether it met its objective."""
        self._recorder.on_first_token(request, now_s)

    def on_decode(self, start_s: float, end_s: float, num_requests: int) -> None:
        """Count a decode step."""
        self._recorder.num_decode_steps += 1


NO_ATTAINMENT = ClassAttainment()
"""Of a class without a first token."""
