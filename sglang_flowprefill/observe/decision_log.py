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

logger = logging.getLogger(__name__)

Facts = Mapping[str, object]
"""What there is to say: numbers, texts and lists of texts by name, units in the names."""


class DecisionLog:
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
