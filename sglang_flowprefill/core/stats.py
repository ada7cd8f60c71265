"""Counters of the scheduler, and the one definition of SLO attainment.

Four words that are not the same: a *preemption* puts other work in front of a prefill, which goes
on later where it stood; a *drop* gives it up for its memory, and its requests start over; a
*cancel* gives it up because all of its requests are gone; an *abort* is the message by which one
request goes, wherever it stands (``num_events[EventKind.ABORT]``).

``StatisticsRecorder`` is written by the loop; readers take the frozen ``statistics()``.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sglang_flowprefill.core.batch import BatchState, PrefillBatch
from sglang_flowprefill.core.events import EventKind
from sglang_flowprefill.core.request import PrefillRequest


def is_attained(ttft_s: float, ttft_slo_s: float) -> bool:
    """Tell whether a TTFT meets its objective. A first token exactly on time counts."""
    return ttft_s <= ttft_slo_s


@dataclass(frozen=True, slots=True)
class ClassAttainment:
    """First tokens of one SLO class so far."""

    num_finished: int = 0
    num_attained: int = 0


@dataclass(frozen=True, slots=True)
class LoopStatistics:
    """A snapshot.

    Attributes:
        num_events: Events by kind.
        num_rounds_by_cause: Scheduling rounds by the first event that each was for.
        num_preemptions: Times other work was put in front of an unfinished prefill.
        num_resumes: Times a suspended prefill went on, also with its next chunk.
        num_prefills: Prefill batches that ended.
        num_cancelled: Prefill batches that were given up because all members were aborted.
        num_dropped: Prefill batches that were given up for their memory; their requests start over.
        num_failed: Prefill batches whose forward pass raised.
        num_restarts: Requests that lost an unfinished prefill to somebody else's need of memory.
        lost_s: Seconds of prefill that were run and thrown away with them.
        num_decode_steps: Decode steps run.
        attainment: First tokens by SLO class.
    """

    num_events: Mapping[EventKind, int]
    num_rounds_by_cause: Mapping[EventKind, int]
    num_preemptions: int
    num_resumes: int
    num_prefills: int
    num_cancelled: int
    num_dropped: int
    num_failed: int
    num_decode_steps: int
    num_restarts: int
    lost_s: float
    attainment: Mapping[str, ClassAttainment]

    @property
    def num_rounds(self) -> int:
        """Scheduling rounds; never more than events."""
        return sum(self.num_rounds_by_cause.values())


@dataclass(slots=True)
class StatisticsRecorder:
    """Mutable side of ``LoopStatistics``."""

    num_preemptions: int = 0
    num_resumes: int = 0
    num_prefills: int = 0
    num_cancelled: int = 0
    num_dropped: int = 0
    num_failed: int = 0
    num_decode_steps: int = 0
    num_restarts: int = 0
    lost_s: float = 0.0
    num_events: Counter[EventKind] = field(default_factory=Counter)
    num_rounds_by_cause: Counter[EventKind] = field(default_factory=Counter)
    _attainment: dict[str, ClassAttainment] = field(default_factory=dict)

    def on_resume(self, batch: PrefillBatch) -> None:
        """Count a batch that is about to run, if it ran before."""
        self.num_resumes += batch.state is BatchState.SUSPENDED

    def on_drop(self, batch: PrefillBatch) -> None:
        """Count a batch that was given up for its memory, as a restart of each of its requests."""
        self.num_dropped += 1
        self.num_restarts += len(batch.requests)
        self.lost_s += batch.run_s

    def on_first_token(self, request: PrefillRequest, now_s: float) -> bool:
        """Count a first token; return whether it met its objective."""
        attained = is_attained(now_s - request.arrival_s, request.slo.ttft_s)
        name = request.slo.class_name
        before = self._attainment.get(name, ClassAttainment())
        self._attainment[name] = ClassAttainment(
            before.num_finished + 1, before.num_attained + attained
        )
        return attained

    def statistics(self) -> LoopStatistics:
        """Return a frozen snapshot."""
        return LoopStatistics(
            num_events=MappingProxyType(dict(self.num_events)),
            num_rounds_by_cause=MappingProxyType(dict(self.num_rounds_by_cause)),
            num_preemptions=self.num_preemptions,
            num_resumes=self.num_resumes,
            num_prefills=self.num_prefills,
            num_cancelled=self.num_cancelled,
            num_dropped=self.num_dropped,
            num_failed=self.num_failed,
            num_decode_steps=self.num_decode_steps,
            num_restarts=self.num_restarts,
            lost_s=self.lost_s,
            attainment=MappingProxyType(dict(self._attainment)),
        )
