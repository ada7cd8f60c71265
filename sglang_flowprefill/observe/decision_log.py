"""One log line for each decision that a user may ask about, as words or as JSON.

    FlowPrefill preempt: batch_id=7 request_ids="a" slo_class="documents" by_batch_id=8 ...
    {"timestamp": "2026-01-01T12:00:00.123456+00:00", "event": "flowprefill.preempt", ...}

Either way the line goes through Python's logging, so SGLang's ``--log-level`` decides whether it is
shown and SGLang's prefix stands before it, as before the lines of ``--log-requests-format json``.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sglang_flowprefill.core import Degrade, PrefillBatch, PrefillRequest, Reject
from sglang_flowprefill.loop.inflight import AnyCursor
from sglang_flowprefill.loop.observer import Observer

logger = logging.getLogger(__name__)

Facts = Mapping[str, object]
"""What there is to say: numbers, texts and lists of texts by name, units in the names."""


class DecisionLog(Observer):
    """Writes decisions.

    Args:
        level: ``debug`` or ``info``: of everything but what costs somebody work already done,
            which is a warning.
        style: ``text`` or ``json``.
        is_silent: Write nothing at all: one rank of several speaks for all.
    """

    def __init__(self, level: str, style: str, *, is_silent: bool = False) -> None:
        self._is_silent = is_silent
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._format = {"text": _as_text, "json": _as_json}[style]

    @property
    def is_enabled(self) -> bool:
        """False if lines would be thrown away."""
        return not self._is_silent and logger.isEnabledFor(self._level)

    def on_preemption(self, preempted: AnyCursor, by: AnyCursor, now_s: float, reason: str) -> None:
        """Log who made way for whom."""
        if self.is_enabled:
            self.write("preempt", preemption_facts(preempted.prefill, by.prefill, now_s, reason))

    def on_resume(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """Log that a prefill goes on which was preempted."""
        if cursor.is_preempted and self.is_enabled:
            self.write("resume", resumption_facts(cursor.prefill, now_s, reason))

    def on_drop(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """Log that computation was thrown away."""
        self.warn("drop", drop_facts(cursor.prefill, reason))

    def on_failure(self, cursor: AnyCursor, now_s: float, error: Exception) -> None:
        """Log that a forward pass raised."""
        self.warn("failure", drop_facts(cursor.prefill, str(error)))

    def on_not_admitted(self, request: PrefillRequest, verdict: Degrade | Reject) -> None:
        """Log that a request was refused, or put behind all others."""
        if self.is_enabled:
            event = "refuse" if isinstance(verdict, Reject) else "degrade"
            self.write(event, verdict_facts(request, verdict))

    def write(self, event: str, facts: Facts) -> None:
        """Log one decision."""
        if self.is_enabled:
            logger.log(self._level, "%s", self._format(event, facts))

    def warn(self, event: str, facts: Facts) -> None:
        """Log one decision that threw work away."""
        if not self._is_silent:
            logger.warning("%s", self._format(event, facts))


def _as_text(event: str, facts: Facts) -> str:
    words = [f"{name}={_quoted(value)}" for name, value in facts.items()]
    return f"FlowPrefill {event}: {' '.join(words)}"


def _quoted(value: object) -> str:
    """Return a number as it is and a text so that it is one word: callers choose request ids."""
    if isinstance(value, list):
        value = ",".join(value)
    return json.dumps(value)


def _as_json(event: str, facts: Facts) -> str:
    head = {"timestamp": datetime.now(UTC).isoformat(), "event": f"flowprefill.{event}"}
    return json.dumps({**head, **facts})


def preemption_facts(
    preempted: PrefillBatch, by: PrefillBatch, now_s: float, reason: str
) -> dict[str, Any]:
    """Say who made way for whom, and why."""
    return {
        **_facts_of(preempted),
        "run_ms": _ms(preempted.run_s),
        "remaining_ms": _ms(preempted.remaining_s),
        "slack_ms": _ms(preempted.requests[0].deadline_s - now_s),
        "num_preemptions": preempted.num_preemptions,
        **{f"by_{name}": value for name, value in _facts_of(by).items()},
        "reason": reason,
    }


def resumption_facts(prefill: PrefillBatch, now_s: float, reason: str) -> dict[str, Any]:
    """Say who goes on after how long, and why. The prefill stands suspended still."""
    return {
        **_facts_of(prefill),
        "run_ms": _ms(prefill.run_s),
        "remaining_ms": _ms(prefill.remaining_s),
        "slack_ms": _ms(prefill.requests[0].deadline_s - now_s),
        "suspended_ms": _ms(now_s - prefill.changed_s),
        "reason": reason,
    }


def drop_facts(prefill: PrefillBatch, reason: str) -> dict[str, Any]:
    """Say whose computation was thrown away, and why."""
    return {**_facts_of(prefill), "lost_ms": _ms(prefill.run_s), "reason": reason}


def verdict_facts(request: PrefillRequest, verdict: Degrade | Reject) -> dict[str, Any]:
    """Say who was not admitted as any other, and why."""
    facts: dict[str, Any] = {
        "request_id": request.request_id,
        "slo_class": request.slo.class_name,
        "num_tokens": request.num_uncached_tokens,
        "ttft_slo_ms": _ms(request.slo.ttft_s),
        "reason": verdict.reason,
    }
    if isinstance(verdict, Reject) and verdict.retry_after_s < float("inf"):
        facts["retry_after_ms"] = _ms(verdict.retry_after_s)
    return facts


def _facts_of(prefill: PrefillBatch) -> dict[str, Any]:
    return {
        "batch_id": prefill.batch_id,
        "request_ids": [request.request_id for request in prefill.requests],
        "slo_class": prefill.requests[0].slo.class_name,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000.0, 3)
