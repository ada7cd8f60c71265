"""Slack-aware earliest deadline first, with a bound for everybody: the default.

Source: FlowPrefill, S-EDF: priority = sgn(slack) / deadline, highest first, slack 0 counting as
negative. Differs: that formula (``s_edf_paper.py``) prefers the *latest* deadline among the
doomed and gives them no bound.
"""

from dataclasses import dataclass
from typing import ClassVar

from sglang_flowprefill.core.policy import Candidate, PolicyKey

_STARVING, _FEASIBLE, _DOOMED = 0.0, 1.0, 2.0


@dataclass(frozen=True, slots=True)
class SEdf:
    """Three tiers, earliest deadline first within each.

    1. Starving: has waited for ``starvation_factor`` times its patience, which is its SLO, or its
       own work if that is longer.
    2. Feasible: slack > 0.
    3. Doomed. The shortest of them runs before the first feasible one all the same while it fits
       into a share of that one's slack: a missed objective is not the end of service, and a short
       prompt is through long before it harms anybody.

    A starving request is overtaken only by starving ones with earlier deadlines. Those arrived
    before its own deadline, so they are a finite set that no later arrival enlarges: its first
    token comes at the latest ``starvation_factor`` x patience after its arrival plus the prefill
    time of that set, of itself, and of what may not be preempted.

    Attributes:
        starvation_factor: Multiple of its patience after which a request goes first.
        lent_share: Share of the first feasible request's slack that a doomed one may use.
    """

    name: ClassVar[str] = "s-edf"
    summary: ClassVar[str] = "earliest deadline first among those that can still meet it"

    starvation_factor: float = 30.0
    may_preempt: bool = True
    lent_share: float = 0.25

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:
        """Order by tier, then deadline, then arrival."""
        arrival_s = candidate.arrival_s
        if now_s - arrival_s > self.starvation_factor * candidate.patience_s:
            return (_STARVING, candidate.deadline_s, arrival_s)
        if candidate.latest_start_s > now_s:
            return (_FEASIBLE, candidate.deadline_s, arrival_s)
        return (_DOOMED, candidate.deadline_s, arrival_s)
