"""Earliest deadline first: optimal while every deadline can be met, wasteful once some cannot.

A doomed request keeps its place in front of those that could still make it, and dooms them too.
"""

from dataclasses import dataclass
from typing import ClassVar

from sglang_flowprefill.core.policy import Candidate, PolicyKey


@dataclass(frozen=True, slots=True)
class Edf:
    """Deadline order, whatever can still be met."""

    name: ClassVar[str] = "edf"
    summary: ClassVar[str] = "earliest deadline"

    may_preempt: bool = True
    lent_share: float = 0.0

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:  # noqa: ARG002 (protocol)
        """Order by deadline, then arrival."""
        return (candidate.deadline_s, candidate.arrival_s)
