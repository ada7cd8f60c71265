"""What may cause a scheduling round. Nothing else does.

A round happens only after at least one event, so rounds never outnumber events, and an idle
server runs none. Source: FlowPrefill, event-driven scheduling (arrival and completion).
Differs: aborts, timers, ready grammars, freed memory and control messages are events of their
own; the released reference does not notice aborts.
"""

from dataclasses import dataclass
from enum import Enum


class EventKind(Enum):
    """Cause of a scheduling round."""

    ARRIVAL = "arrival"
    COMPLETION = "completion"  # a prefill batch or a decode step ended
    ABORT = "abort"  # a message that ends one request, whatever becomes of its prefill
    TIMER = "timer"  # a decode step or a review is due
    GRAMMAR_READY = "grammar_ready"  # a waiting request's grammar is compiled
    KV_FREED = "kv_freed"  # memory came free: somebody waits for it, or a prefill was given up
    CONTROL = "control"  # pause, flush, weight update, ... arrived on the same socket


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: What it was.
        time_s: When the scheduler noticed it.
    """

    kind: EventKind
    time_s: float
