"""S-EDF exactly as published, to compare with.

Source: FlowPrefill, S-EDF: priority = sgn(slack) / deadline, highest first, with slack =
deadline - now - max(predicted - run, 0) and slack 0 counting as negative.
"""

from dataclasses import dataclass
from typing import ClassVar

from sglang_flowprefill.core.policy import Candidate, PolicyKey


@dataclass(frozen=True, slots=True)
class SEdfPaper:
    """Feasible requests by earliest deadline, then doomed ones by *latest* deadline.

    For deadlines on a positive clock this is the order of the published formula, without the
    rounding of a quotient: among positive priorities 1/d the highest has the smallest d, among
    negative ones -1/d the largest.
    """

    name: ClassVar[str] = "s-edf-paper"
    summary: ClassVar[str] = (
        "s-edf by the published formula: of the late, the latest deadline first"
    )

    may_preempt: bool = True
    lent_share: float = 0.0

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:
        """Order by the sign of the slack, then deadline, then arrival."""
        if candidate.latest_start_s > now_s:
            return (0.0, candidate.deadline_s, candidate.arrival_s)
        return (1.0, -candidate.deadline_s, candidate.arrival_s)
