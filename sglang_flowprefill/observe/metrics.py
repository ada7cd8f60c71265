"""Prometheus metrics of the scheduler process, under ``sglang_flowprefill_``.

``METRICS`` is all of them, as data: the process makes them from it, ``docs/reference/metrics.md``
is generated from it, and the tests compare both with a running server. A metric with labels starts
with every value that is known at the start, at zero, so that a rate over it is never missing.

SGLang collects metrics of all its processes through prometheus_client's multiprocess files, whose
folder must be in the environment before that library is first imported: hence the late import.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sglang_flowprefill.core import (
    BatchState,
    Degrade,
    EventKind,
    PredictionError,
    PrefillBatch,
    PrefillRequest,
    Reject,
)
from sglang_flowprefill.core.admission import DEGRADE_REASONS, REJECT_REASONS
from sglang_flowprefill.core.decision import DROP_REASONS
from sglang_flowprefill.core.stats import is_attained
from sglang_flowprefill.loop.inflight import AnyCursor
from sglang_flowprefill.loop.observer import Observer, Round

PREFIX = "sglang_flowprefill_"

_SHORT_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_ROUND_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)
_TTFT_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768)
_KINDS = tuple(kind.value for kind in EventKind)
_OUTCOMES = ("finished", "cancelled", "dropped", "failed")
_ENDS = ("stop", "length", "abort")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: Without ``PREFIX``; carries the unit.
        kind: ``counter``, ``gauge`` or ``histogram``.
        help: What it counts, as Prometheus and the reference show it.
        labels: Each with the values known beforehand; None: the SLO classes.
        buckets: Of a histogram.
        mode: How SGLang's processes add up a gauge.
    """

    name: str
    kind: str
    help: str
    labels: tuple[tuple[str, tuple[str, ...] | None], ...] = ()
    buckets: tuple[float, ...] = ()
    mode: str = "livesum"


def _counter(name: str, text: str, **labels: tuple[str, ...] | None) -> Metric:
    return Metric(name, "counter", text, tuple(labels.items()))


def _gauge(name: str, text: str, mode: str = "livesum", **labels: None) -> Metric:
    return Metric(name, "gauge", text, tuple(labels.items()), mode=mode)


def _histogram(
    name: str, text: str, buckets: tuple[float, ...], **labels: tuple[str, ...] | None
) -> Metric:
    return Metric(name, "histogram", text, tuple(labels.items()), buckets)


METRICS = (
    # requests
    _counter("arrivals_total", "Requests that arrived, those that are refused included.",
             slo_class=None),
    _counter("rejected_total", "New requests that admission refused.",
             slo_class=None, reason=REJECT_REASONS),
    _counter("degraded_total", "New requests that admission put behind all others.",
             slo_class=None, reason=DEGRADE_REASONS),
    _gauge("waiting_requests", "Requests that wait for their prefill, at the last round.",
           slo_class=None),
    _counter("first_tokens_total", "First tokens, by whether they met their TTFT objective.",
             slo_class=None, attained=("true", "false")),
    _histogram("ttft_seconds", "Seconds from arrival to first token.", _TTFT_S, slo_class=None),
    _counter("completions_total", "Requests whose last token is out, by what ended them.",
             slo_class=None, end=_ENDS),
    # scheduling
    _counter("events_total", "Events that reached the scheduler.", kind=_KINDS),
    _counter("rounds_total", "Scheduling rounds, by the first of the events that each was for.",
             cause=_KINDS),
    _histogram("round_seconds", "Seconds that a scheduling round took to decide.", _ROUND_S),
    _counter("preemptions_total", "Times an unfinished prefill made way for another."),
    _counter("resumes_total", "Times a suspended prefill went on, also with its next chunk."),
    _histogram("blocking_seconds",
               "Seconds from an event to the yield of the running prefill, at most: counted from "
               "the last boundary at which nothing had happened.", _SHORT_S),
    # prefills
    _counter("prefills_total",
             "Prefill batches that ended: finished, cancelled (all of its requests were aborted), "
             "dropped (for its memory; its requests start over) or failed (it raised).",
             outcome=_OUTCOMES),
    _histogram("prefill_batch_requests", "Requests in a prefill batch, at its start.", _REQUESTS),
    _histogram("prefill_batch_tokens", "Tokens that a prefill batch computes, at its start.",
               _TOKENS),
    _counter("tiles_total", "Row tiles run: parts of operators that are too long as a whole."),
    _counter("tile_tokens_total", "Tokens in row tiles, once for each operator in tiles."),
    _gauge("suspended_cursors", "Prefills that stand suspended."),
    _gauge("suspended_bytes", "Bytes of activations that suspended prefills hold."),
    _counter("restarts_total",
             "Requests whose unfinished prefill was dropped, to start over later.",
             reason=DROP_REASONS),
    _counter("lost_prefill_seconds_total",
             "Seconds of computation thrown away with dropped prefills."),
    _gauge("prediction_error_ratio",
           "Median of abs(actual - predicted) / actual over the last 128 prefills.", "mostrecent"),
    _gauge("prediction_bias_ratio",
           "Median of predicted / actual - 1 over the last 128 prefills; positive: predictions "
           "are too long.", "mostrecent"),
    # decoding
    _counter("decode_steps_total", "Decode steps."),
    _histogram("decode_batch_requests", "Requests in a decode step.", _REQUESTS),
)  # fmt: skip


class Metrics(Observer):
    """What the scheduler reports to Prometheus.

    Args:
        class_names: SLO classes known at the start.
        suspended: Returns the prefills that stand suspended.
        tiles: Returns how many row tiles have run since the start, and the tokens in them.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        suspended: Callable[[], Sequence[PrefillBatch]],
        tiles: Callable[[], tuple[int, int]],
    ) -> None:
        self._suspended = suspended
        self._tiles = tiles
        self._waiting_classes = set(class_names)
        self._tiles_before = (0, 0)
        self._of = {spec.name: _made(spec, class_names) for spec in METRICS}

    def on_event(self, kind: EventKind) -> None:
        """Count an event."""
        self._count("events_total", kind.value)

    def on_arrival(self, request: PrefillRequest) -> None:
        """Count a new request."""
        self._count("arrivals_total", request.slo.class_name)

    def on_not_admitted(self, request: PrefillRequest, verdict: Degrade | Reject) -> None:
        """Count a request that was refused or put last."""
        name = "rejected_total" if isinstance(verdict, Reject) else "degraded_total"
        self._count(name, request.slo.class_name, verdict.reason)

    def on_round(self, round_: Round) -> None:
        """Record a scheduling round and the queue that it saw."""
        self._count("rounds_total", round_.events[0].kind.value)
        self._of["round_seconds"].observe(round_.end_s - round_.start_s)
        num_waiting = Counter(request.slo.class_name for request in round_.view.waiting)
        self._waiting_classes |= num_waiting.keys()
        for name in self._waiting_classes:
            self._of["waiting_requests"].labels(name).set(num_waiting[name])

    def on_preemption(self, preempted: AnyCursor, by: AnyCursor, now_s: float, reason: str) -> None:
        """Count a preemption."""
        self._count("preemptions_total")

    def on_resume(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """Count a prefill that goes on; record the size of one that starts."""
        if cursor.prefill.state is BatchState.SUSPENDED:
            self._count("resumes_total")
        else:
            self._of["prefill_batch_requests"].observe(len(cursor.prefill.requests))
            self._of["prefill_batch_tokens"].observe(cursor.prefill.num_uncached_tokens)
        self._set_suspended(but=cursor.prefill)

    def on_yield(self, cursor: AnyCursor, now_s: float, cause: str, blocking_s: float) -> None:
        """Record how long an event has waited at most for the running prefill to yield."""
        self._of["blocking_seconds"].observe(blocking_s)
        self._end_slice()

    def on_chunk_end(self, cursor: AnyCursor, now_s: float) -> None:
        """Record the end of a forward pass."""
        self._end_slice()

    def on_prefill_end(self, cursor: AnyCursor, now_s: float) -> None:
        """Count a prefill that finished."""
        self._end_prefill("finished")

    def on_cancel(self, cursor: AnyCursor, now_s: float) -> None:
        """Count a prefill whose requests were all aborted."""
        self._end_prefill("cancelled")

    def on_failure(self, cursor: AnyCursor, now_s: float, error: Exception) -> None:
        """Count a prefill whose forward pass raised."""
        self._end_prefill("failed")

    def on_drop(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """Count requests that start over, and the computation lost with them."""
        self._of["restarts_total"].labels(reason).inc(len(cursor.prefill.requests))
        self._of["lost_prefill_seconds_total"].inc(cursor.prefill.run_s)
        self._end_prefill("dropped")

    def on_prediction(self, error: PredictionError) -> None:
        """Publish how wrong recent predictions were."""
        self._of["prediction_error_ratio"].set(error.median_absolute)
        self._of["prediction_bias_ratio"].set(error.bias)

    def on_first_token(self, request: PrefillRequest, now_s: float) -> None:
        """Record a first token."""
        name, ttft_s = request.slo.class_name, now_s - request.arrival_s
        attained = is_attained(ttft_s, request.slo.ttft_s)
        self._count("first_tokens_total", name, str(attained).lower())
        self._of["ttft_seconds"].labels(name).observe(ttft_s)

    def on_completion(self, request: PrefillRequest, end: str) -> None:
        """Count a request whose last token is out."""
        self._count("completions_total", request.slo.class_name, end)

    def on_decode(self, start_s: float, end_s: float, num_requests: int) -> None:
        """Record a decode step."""
        self._count("decode_steps_total")
        self._of["decode_batch_requests"].observe(num_requests)

    def _end_prefill(self, outcome: str) -> None:
        self._count("prefills_total", outcome)
        self._end_slice()

    def _end_slice(self) -> None:
        self._set_suspended()
        before, self._tiles_before = self._tiles_before, self._tiles()
        num_tiles, num_tokens = self._tiles_before
        if num_tiles > before[0]:
            self._of["tiles_total"].inc(num_tiles - before[0])
            self._of["tile_tokens_total"].inc(num_tokens - before[1])

    def _set_suspended(self, but: PrefillBatch | None = None) -> None:
        suspended = [prefill for prefill in self._suspended() if prefill is not but]
        self._of["suspended_cursors"].set(len(suspended))
        self._of["suspended_bytes"].set(sum(prefill.held_bytes for prefill in suspended))

    def _count(self, name: str, *labels: str) -> None:
        counter = self._of[name]
        (counter.labels(*labels) if labels else counter).inc()


def _made(spec: Metric, class_names: Sequence[str]) -> Any:
    import prometheus_client  # noqa: PLC0415 (see the module docstring)

    kind = getattr(prometheus_client, spec.kind.capitalize())
    options: dict[str, Any] = {"buckets": spec.buckets} if spec.buckets else {}
    if spec.kind == "gauge":
        options["multiprocess_mode"] = spec.mode
    metric = kind(PREFIX + spec.name, spec.help, [name for name, _ in spec.labels], **options)
    values = [class_names if known is None else known for _, known in spec.labels]
    if spec.labels:
        for combination in product(*values):
            metric.labels(*combination)
    return metric
