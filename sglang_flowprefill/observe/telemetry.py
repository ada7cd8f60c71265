"""All observers of one scheduler process, and what they tell together.

The only module that knows more than one of them. They do not know each other.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from sglang_flowprefill.loop.observer import Observer
from sglang_flowprefill.loop.statistics import StatisticsObserver
from sglang_flowprefill.observe.live_state import LiveState


class Telemetry:
    """What a scheduler process tells the outside.

    Args:
        live: Watchers' view of the present.
        others: Further observers: metrics, decision log, timeline, traces of requests.

    Attributes:
        observers: Everybody whom the loop tells what happens.
    """

    def __init__(self, live: LiveState, others: Sequence[Observer] = ()) -> None:
        self._counted = StatisticsObserver()
        self._live = live
        self.observers: tuple[Observer, ...] = (self._counted, live, *others)

    @property
    def statistics(self) -> StatisticsObserver:
        """What is counted."""
        return self._counted

    def describe(self) -> dict[str, Any]:
        """Return the statistics as plain values."""
        statistics = self._counted.statistics()
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
            "num_dropped": statistics.num_dropped,
            "num_failed": statistics.num_failed,
            "num_restarts": statistics.num_restarts,
            "lost_s": round(statistics.lost_s, 6),
            "num_rejected": self._counted.num_rejected.total(),
            "num_degraded": self._counted.num_degraded.total(),
            "num_decode_steps": statistics.num_decode_steps,
            "attainment": {
                name: {"num_finished": a.num_finished, "num_attained": a.num_attained}
                for name, a in statistics.attainment.items()
            },
        }

    def live_state(self) -> bytes:
        """Return ``ServerState`` as JSON. May be called in any thread."""
        return msgspec.json.encode(self._live.snapshot(self._counted))
