"""Preemptions and resumptions as events in SGLang's own OpenTelemetry traces of requests.

With ``--enable-trace`` every ``Req`` carries a trace, whose span ``prefill_forward`` is open while
its prefill runs or stands suspended; an event of ours becomes an event of that span. Without it
there is nothing to add to, and nothing is done.
"""

from collections.abc import Mapping
from typing import Any

from sglang_flowprefill.loop.inflight import AnyCursor
from sglang_flowprefill.loop.observer import Observer
from sglang_flowprefill.observe.decision_log import preemption_facts, resumption_facts

_LEVEL = 1  # of SGLang's three the one that is always traced


class RequestTraces(Observer):
    """Adds what happens to a prefill to the traces of its requests."""

    def on_preemption(self, preempted: AnyCursor, by: AnyCursor, now_s: float, reason: str) -> None:
        """Add a preemption."""
        reqs = _traced(preempted)
        if reqs:
            facts = preemption_facts(preempted.prefill, by.prefill, now_s, reason)
            _add_event(reqs, "preempt", facts)

    def on_resume(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """Add a resumption, if there was a preemption."""
        reqs = _traced(cursor) if cursor.is_preempted else []
        if reqs:
            _add_event(reqs, "resume", resumption_facts(cursor.prefill, now_s, reason))


def _traced(cursor: AnyCursor) -> list[Any]:
    """Return those of a prefill's requests that are traced."""
    return [req for req in cursor.work.reqs if req.time_stats.trace_ctx.tracing_enable]


def _add_event(reqs: list[Any], event: str, facts: Mapping[str, object]) -> None:
    attributes = {f"flowprefill.{name}": value for name, value in facts.items()}
    for req in reqs:
        req.time_stats.trace_ctx.trace_event(f"flowprefill.{event}", _LEVEL, attrs=attributes)
