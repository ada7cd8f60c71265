"""Highest response ratio next: short jobs first, but waiting counts, so none starves.

The ratio is (time waited + work) / work. By its definition, and as in SGLang's policy of this
name, a job that has begun is not interrupted.
"""

from dataclasses import dataclass
from typing import ClassVar

from sglang_flowprefill.core.policy import Candidate, PolicyKey

_LEAST_WORK_S = 1e-6  # a prefill that outran its prediction has no predicted work left


@dataclass(frozen=True, slots=True)
class Hrrn:
    """Highest response ratio first, without preemption."""

    name: ClassVar[str] = "hrrn"
    summary: ClassVar[str] = "highest response ratio, never preempts"

    may_preempt: bool = False
    lent_share: float = 0.0

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:
        """Order by response ratio, highest first, then arrival."""
        arrival_s = candidate.arrival_s
        return ((arrival_s - now_s) / (candidate.remaining_s or _LEAST_WORK_S), arrival_s)
