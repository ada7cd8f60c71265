"""What the event loop tells the outside: statistics, metrics, live watchers, logs and traces.

The loop reports each thing that happens once, here; who wants to know of it is decided here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sglang_flowprefill.adapter.serving import request_traces
from sglang_flowprefill.api.state import RoundState
from sglang_flowprefill.core import (
    BatchState,
    ClassAttainment,
    Decision,
    Degrade,
    Event,
    EventKind,
    PredictionError,
    PrefillBatch,
    PrefillRequest,
    Reject,
    RoundView,
    StatisticsRecorder,
)
from sglang_flowprefill.loop.inflight import OperatorCursor
from sglang_flowprefill.observe.decision_facts import (
    drop_facts,
    preemption_facts,
    resumption_facts,
    verdict_facts,
)
from sglang_flowprefill.observe.decision_log import DecisionLog
from sglang_flowprefill.observe.live_state import LiveState, Totals
from sglang_flowprefill.observe.metrics import Metrics
from sglang_flowprefill.observe.timeline import CHUNK_FINISHED, Timeline


class Telemetry:
    """Counts and draws what one scheduler process does.

    Args:
        metrics: Prometheus.
        live: What watchers ask for.
        log: Of decisions.
        timeline: Trace file, if one is wanted.
    """

    def __init__(
        self, metrics: Metrics, live: LiveState, log: DecisionLog, timeline: Timeline | None
    ) -> None:
        self._metrics = metrics
        self._live = live
        self._log = log
        self._timeline = timeline
        self._recorder = StatisticsRecorder()
        self._preempted: set[int] = set()  # unfinished batches that have not gone on since
        self._num_arrived: Counter[str] = Counter()
        self._num_rejected: Counter[str] = Counter()
        self._num_degraded: Counter[str] = Counter()

    def on_event(self, kind: EventKind) -> None:
        """Something happened that causes a round."""
        self._recorder.num_events[kind] += 1
        self._metrics.on_event(kind)

    def on_arrival(self, request: PrefillRequest) -> None:
        """A new request came."""
        self._num_arrived[request.slo.class_name] += 1
        self._metrics.on_arrival(request)

    def on_round(
        self,
        events: Sequence[Event],
        decision: Decision,
        view: RoundView,
        now_s: float,
        *,
        end_s: float,
        num_decoding: int,
    ) -> None:
        """A scheduling round decided, caused by the first of these events.

        Args:
            events: All that it was for.
            decision: What it decided.
            view: On what grounds.
            now_s: When it began.
            end_s: When it had decided.
            num_decoding: Requests past their prefill.
        """
        cause = events[0].kind
        round_ = RoundState(now_s, cause.value, type(decision).__name__, end_s - now_s)
        self._live.on_round(round_, view.waiting, num_decoding)
        self._recorder.num_rounds_by_cause[cause] += 1
        self._metrics.on_round(cause, end_s - now_s, view.waiting)
        if self._timeline is not None:
            self._timeline.on_round(
                now_s,
                events=[event.kind.value for event in events],
                decision=type(decision).__name__,
                reason=decision.reason,
                num_waiting=len(view.waiting),
                num_unfinished=len(view.batches),
            )

    def on_preemption(
        self, preempted: OperatorCursor, by: OperatorCursor, now_s: float, *, reason: str
    ) -> None:
        """Another prefill is put in front of an unfinished one."""
        preempted.prefill.num_preemptions += 1
        self._recorder.num_preemptions += 1
        self._preempted.add(preempted.prefill.batch_id)
        self._metrics.on_preemption()
        traced = request_traces.traced(preempted.reqs)
        if traced or self._log.is_enabled:
            facts = preemption_facts(preempted.prefill, by.prefill, now_s, reason)
            self._log.write("preempt", facts)
            request_traces.add_event(traced, "preempt", facts)

    def on_resume(self, cursor: OperatorCursor, now_s: float, *, reason: str) -> None:
        """A prefill is about to start or to go on."""
        self._report_resumption(cursor, now_s, reason)
        self._recorder.on_resume(cursor.prefill)
        self._live.on_resume(cursor, now_s)
        if cursor.prefill.state is BatchState.SUSPENDED:
            self._metrics.on_resume()
        else:
            self._metrics.on_start(cursor.prefill)
        self._report_suspended(but=cursor.prefill)
        if self._timeline is not None:
            label = _label(cursor.prefill)
            self._timeline.on_resume(cursor.prefill.batch_id, label, now_s, reason=reason)

    def on_yield(
        self, cursor: OperatorCursor, now_s: float, *, causes: Sequence[str], blocking_s: float
    ) -> None:
        """A prefill stopped at a boundary.

        Args:
            cursor: The prefill.
            now_s: When it stopped.
            causes: Kinds of the events it made way for.
            blocking_s: Seconds that these have waited for it at most.
        """
        self._live.on_yield(cursor.prefill, now_s, blocking_s)
        self._metrics.on_yield(blocking_s)
        self._report_suspended()
        if self._timeline is not None:
            self._timeline.on_yield(
                cursor.prefill.batch_id, now_s, causes=causes, blocking_s=blocking_s
            )

    def on_tiles(self, num_tiles: int, num_tokens: int) -> None:
        """So many row tiles have run since the start, and so many tokens in them."""
        self._metrics.on_tiles(num_tiles, num_tokens)

    def on_chunk_end(self, cursor: OperatorCursor, now_s: float) -> None:
        """A forward pass ended that is not the last of its prompt."""
        self._end_slice(cursor, now_s, CHUNK_FINISHED)

    def on_prefill_end(self, cursor: OperatorCursor, now_s: float) -> None:
        """A prefill has all its first tokens."""
        self._recorder.num_prefills += 1
        self._metrics.on_prefill_end("finished")
        self._end_slice(cursor, now_s, "finished")

    def on_cancel(self, cursor: OperatorCursor, now_s: float) -> None:
        """A prefill was abandoned because its requests were aborted."""
        self._recorder.num_cancelled += 1
        self._metrics.on_prefill_end("cancelled")
        self._end_slice(cursor, now_s, "cancelled")

    def on_restart(self, cursor: OperatorCursor, now_s: float, *, reason: str) -> None:
        """A prefill was abandoned and its requests start over later."""
        self._recorder.on_restart(cursor.prefill)
        self._metrics.on_prefill_end("dropped")
        self._metrics.on_restart(cursor.prefill, reason)
        self._log.warn("drop", drop_facts(cursor.prefill, reason))
        self._end_slice(cursor, now_s, "dropped")

    def on_first_token(self, request: PrefillRequest, now_s: float) -> None:
        """A request got its first token."""
        attained = self._recorder.on_first_token(request, now_s)
        ttft_s = now_s - request.arrival_s
        self._metrics.on_first_token(request.slo.class_name, ttft_s, is_attained=attained)

    def on_completion(self, request: PrefillRequest, end: str) -> None:
        """A request got its last token, for this reason."""
        self._metrics.on_completion(request.slo.class_name, end)

    def on_not_admitted(self, request: PrefillRequest, verdict: Degrade | Reject) -> None:
        """A new request was refused, or put behind all others."""
        is_rejected = isinstance(verdict, Reject)
        counter = self._num_rejected if is_rejected else self._num_degraded
        counter[request.slo.class_name] += 1
        self._metrics.on_not_admitted(request, verdict.reason, is_rejected=is_rejected)
        if self._log.is_enabled:
            self._log.write("refuse" if is_rejected else "degrade", verdict_facts(request, verdict))

    def on_prediction(self, error: PredictionError) -> None:
        """The predictor was compared with what a prefill took."""
        self._live.on_prediction(error)
        self._metrics.on_prediction(error)

    def on_decode(self, start_s: float, end_s: float, num_requests: int) -> None:
        """A decode step ran."""
        self._recorder.num_decode_steps += 1
        self._live.on_decode(start_s, end_s, num_requests)
        self._metrics.on_decode(num_requests)
        if self._timeline is not None:
            self._timeline.on_decode(start_s, end_s, num_requests=num_requests)

    @property
    def attainment(self) -> Mapping[str, ClassAttainment]:
        """First tokens by SLO class."""
        return self._recorder.statistics().attainment

    def describe(self) -> dict[str, Any]:
        """Return the statistics as plain values."""
        statistics = self._recorder.statistics()
        return {
            "num_events": {kind.value: n for kind, n in statistics.num_events.items()},
            "num_rounds": statistics.num_rounds,
            "num_rounds_by_cause": {
                kind.value: n for kind, n in statistics.num_rounds_by_cause.items()
            },
            "num_preemptions": statistics.num_preemptions,
            "num_resumes": statistics.num_resumes,
            "num_prefills": statistics.num_prefills,
            "num_cancelled": statistics.num_cancelled,
            "num_restarts": statistics.num_restarts,
            "lost_s": round(statistics.lost_s, 6),
            "num_rejected": self._num_rejected.total(),
            "num_degraded": self._num_degraded.total(),
            "num_decode_steps": statistics.num_decode_steps,
            "attainment": {
                name: {"num_finished": a.num_finished, "num_attained": a.num_attained}
                for name, a in statistics.attainment.items()
            },
        }

    def live_state(self) -> bytes:
        """Return ``ServerState`` as JSON. May be called in any thread."""
        totals = Totals(
            self._recorder.statistics(),
            dict(self._num_arrived),
            dict(self._num_rejected),
            dict(self._num_degraded),
        )
        return msgspec.json.encode(self._live.snapshot(totals))

    def close(self) -> None:
        """Complete the timeline's file."""
        if self._timeline is not None:
            self._timeline.close()

    def _report_resumption(self, cursor: OperatorCursor, now_s: float, reason: str) -> None:
        """Tell that a prefill goes on, if it was told that it was preempted."""
        if cursor.prefill.batch_id not in self._preempted:
            return
        self._preempted.remove(cursor.prefill.batch_id)
        traced = request_traces.traced(cursor.reqs)
        if traced or self._log.is_enabled:
            facts = resumption_facts(cursor.prefill, now_s, reason)
            self._log.write("resume", facts)
            request_traces.add_event(traced, "resume", facts)

    def _report_suspended(self, but: PrefillBatch | None = None) -> None:
        if not self._metrics.is_enabled:
            return
        suspended = [prefill for prefill in self._live.suspended() if prefill is not but]
        self._metrics.on_suspended(len(suspended), sum(p.held_bytes for p in suspended))

    def _end_slice(self, cursor: OperatorCursor, now_s: float, outcome: str) -> None:
        self._live.on_end(cursor.prefill, now_s, outcome)
        if outcome != CHUNK_FINISHED:
            self._preempted.discard(cursor.prefill.batch_id)
        self._report_suspended()
        if self._timeline is not None:
            self._timeline.on_finish(cursor.prefill.batch_id, now_s, outcome=outcome)


def _label(prefill: PrefillBatch) -> str:
    head = prefill.requests[0]
    others = f" and {len(prefill.requests) - 1} more" if len(prefill.requests) > 1 else ""
    return f"{head.request_id}{others} ({head.slo.class_name})"
