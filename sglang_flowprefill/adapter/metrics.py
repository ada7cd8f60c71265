"""Prometheus metrics of the scheduler process, under ``sglang_flowprefill_``.

SGLang collects metrics of all its processes through prometheus_client's multiprocess files, whose
folder must be in the environment before that library is first imported: hence the late import.
"""

from sglang_flowprefill.core import EventKind

_BLOCKING_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metrics:
    """Counters and histograms; every method does nothing without ``--enable-metrics``."""

    def __init__(self, *, is_enabled: bool) -> None:
        self._is_enabled = is_enabled
        if not is_enabled:
            return
        from prometheus_client import Counter, Gauge, Histogram  # noqa: PLC0415 (see above)

        prefix = "sglang_flowprefill_"
        self._events = Counter(
            f"{prefix}events_total", "Events that reached the scheduler.", ["kind"]
        )
        self._rounds = Counter(
            f"{prefix}rounds_total",
            "Scheduling rounds, by the first of the events that each was for.",
            ["cause"],
        )
        self._preemptions = Counter(
            f"{prefix}preemptions_total", "Times an unfinished prefill made way for another."
        )
        self._restarts = Counter(
            f"{prefix}restarts_total",
            "Requests whose unfinished prefill was dropped for memory, to start over later.",
        )
        self._lost = Counter(
            f"{prefix}lost_prefill_seconds_total",
            "Seconds of computation thrown away with dropped prefills.",
        )
        self._not_admitted = Counter(
            f"{prefix}not_admitted_total",
            "New requests that admission refused (rejected) or put behind all others (degraded).",
            ["slo_class", "verdict"],
        )
        self._suspended = Gauge(
            f"{prefix}suspended_cursors",
            "Prefills that stand suspended at an operator boundary.",
            multiprocess_mode="livesum",
        )
        self._blocking = Histogram(
            f"{prefix}blocking_seconds",
            "Upper bound of the time from an event to the yield of the running prefill.",
            buckets=_BLOCKING_BUCKETS_S,
        )
        self._prediction_error = Gauge(
            f"{prefix}prediction_error_ratio",
            "Median of |actual - predicted| / actual over recent prefills.",
            multiprocess_mode="mostrecent",
        )
        self._prediction_bias = Gauge(
            f"{prefix}prediction_bias_ratio",
            "Median of predicted / actual - 1 over recent prefills.",
            multiprocess_mode="mostrecent",
        )
        self._first_tokens = Counter(
            f"{prefix}first_tokens_total",
            "First tokens by SLO class and whether they met their TTFT objective.",
            ["slo_class", "attained"],
        )

    def on_event(self, kind: EventKind) -> None:
        """Count an event."""
        if self._is_enabled:
            self._events.labels(kind.value).inc()

    def on_round(self, cause: EventKind) -> None:
        """Count a scheduling round."""
        if self._is_enabled:
            self._rounds.labels(cause.value).inc()

    def on_preemption(self) -> None:
        """Count a preemption."""
        if self._is_enabled:
            self._preemptions.inc()

    def on_restart(self, num_requests: int, lost_s: float) -> None:
        """Count requests that start over, and the computation lost with them."""
        if self._is_enabled:
            self._restarts.inc(num_requests)
            self._lost.inc(lost_s)

    def on_suspended(self, num_cursors: int) -> None:
        """Publish how many prefills stand suspended."""
        if self._is_enabled:
            self._suspended.set(num_cursors)

    def on_yield(self, blocking_s: float) -> None:
        """Record how long an event has waited at most for the running prefill to yield."""
        if self._is_enabled:
            self._blocking.observe(blocking_s)

    def on_not_admitted(self, class_name: str, *, is_rejected: bool) -> None:
        """Count a request that was refused or put last."""
        if self._is_enabled:
            verdict = "rejected" if is_rejected else "degraded"
            self._not_admitted.labels(class_name, verdict).inc()

    def on_prediction(self, median_absolute_error: float, bias: float) -> None:
        """Publish how wrong recent predictions were."""
        if self._is_enabled:
            self._prediction_error.set(median_absolute_error)
            self._prediction_bias.set(bias)

    def on_first_token(self, class_name: str, *, is_attained: bool) -> None:
        """Count a first token."""
        if self._is_enabled:
            self._first_tokens.labels(class_name, str(is_attained).lower()).inc()
