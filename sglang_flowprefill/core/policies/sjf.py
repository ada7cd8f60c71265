"""Shortest job first, by the work that is left: the least mean TTFT, and no word about SLOs.

A stream of short prompts keeps a long one out for ever; that is the policy, not a defect of it.
"""

from dataclasses import dataclass
from typing import ClassVar

from sglang_flowprefill.core.policy import Candidate, PolicyKey


@dataclass(frozen=True, slots=True)
class Sjf:
    """Least predicted remaining time first."""

    name: ClassVar[str] = "sjf"
    summary: ClassVar[str] = "least remaining work"

    may_preempt: bool = True
    lent_share: float = 0.0

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:  # noqa: ARG002 (protocol)
        """Order by remaining work, then arrival."""
        return (candidate.remaining_s, candidate.arrival_s)
