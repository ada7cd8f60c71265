"""What a scheduling round may decide. The adapter carries it out and decides nothing itself."""

import math
from dataclasses import dataclass

from sglang_flowprefill.core.request import PrefillRequest

STUCK = "nothing else can run"
TIGHTER_DEADLINE = "makes room for a tighter deadline"
DECODE_NEEDS_MEMORY = "decode needs memory"
QUIET_WANTED = "the engine is wanted quiet"
DROP_REASONS = (STUCK, TIGHTER_DEADLINE, DECODE_NEEDS_MEMORY, QUIET_WANTED)
"""Why an unfinished prefill may be dropped."""


@dataclass(frozen=True, slots=True)
class StartBatch:
    """Prefill these waiting requests together, the first being the head.

    Attributes:
        requests: Head and passengers.
        reason: Why.
        review_s: As in ``ResumeBatch``.
    """

    requests: tuple[PrefillRequest, ...]
    reason: str
    review_s: float = math.inf


@dataclass(frozen=True, slots=True)
class ResumeBatch:
    """Start or continue this batch until it ends or an event interrupts it.

    Attributes:
        batch_id: The batch.
        reason: Why.
        review_s: Time of a timer event that should cause another round, if none comes before:
            somebody waits, for memory or with a decode step, and should not wait longer.
    """

    batch_id: int
    reason: str
    review_s: float = math.inf


@dataclass(frozen=True, slots=True)
class DropBatches:
    """Cancel these batches, give their memory back and let their requests wait again.

    Their requests start over later, ``num_restarts`` one higher. Then decide again.
    """

    batch_ids: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class RunDecode:
    """Run one decode step of the running requests."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can run: sleep until an event."""

    reason: str


Decision = StartBatch | ResumeBatch | DropBatches | RunDecode | Wait
