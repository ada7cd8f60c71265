"""What a scheduling round may decide. The adapter carries it out and decides nothing itself."""

from dataclasses import dataclass

from sglang_flowprefill.core.request import PrefillRequest


@dataclass(frozen=True, slots=True)
class StartBatch:
    """Prefill these waiting requests together, the first being the head."""

    requests: tuple[PrefillRequest, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ResumeBatch:
    """Start or continue this batch until it ends or an event interrupts it."""

    batch_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class RunDecode:
    """Run one decode step of the running requests."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can run: sleep until an event."""

    reason: str


Decision = StartBatch | ResumeBatch | RunDecode | Wait
