"""First come, first served: what a plain queue does, and the ablation of everything else."""

from dataclasses import dataclass
from typing import ClassVar

from sglang_flowprefill.core.policy import Candidate, PolicyKey


@dataclass(frozen=True, slots=True)
class Fcfs:
    """Arrival order, without preemption."""

    name: ClassVar[str] = "fcfs"
    summary: ClassVar[str] = "arrival order, never preempts"

    may_preempt: bool = False
    lent_share: float = 0.0

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:  # noqa: ARG002 (protocol)
        """Order by arrival."""
        return (candidate.arrival_s,)
