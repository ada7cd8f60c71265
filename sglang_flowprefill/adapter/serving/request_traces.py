"""Preemptions and resumptions as events in SGLang's own OpenTelemetry traces of requests.

With ``--enable-trace`` every ``Req`` carries a trace, whose span ``prefill_forward`` is open while
its prefill runs or stands suspended; an event of ours becomes an event of that span. Without it
there is nothing to add to, and nothing is done.
"""

from collections.abc import Iterable, Mapping
from typing import Any

_LEVEL = 1  # of SGLang's three the one that is always traced


def traced(reqs: Iterable[Any]) -> list[Any]:
    """Return those of SGLang's requests that are traced."""
    return [req for req in reqs if req.time_stats.trace_ctx.tracing_enable]


def add_event(reqs: Iterable[Any], event: str, facts: Mapping[str, object]) -> None:
    """Add an event of this moment to the traces of these requests.

    Args:
        reqs: As from ``traced``.
        event: What happened.
        facts: Numbers, texts and lists of texts by name.
    """
    attributes = {f"flowprefill.{name}": value for name, value in facts.items()}
    for req in reqs:
        req.time_stats.trace_ctx.trace_event(f"flowprefill.{event}", _LEVEL, attrs=attributes)
