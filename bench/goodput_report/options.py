"""What a report compares with what, and which targets it judges."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Targets:
    """Ratios that the subject should reach; this project's own goals by default.

    Attributes:
        ratio_to_baseline: Max goodput over that of the baseline.
        share_of_limit: Max goodput over the physical limit.
        ratio_to_best_peer: Max goodput over that of the best peer.
        tight_ratio_to_best_peer: The same at the tightest objectives that were searched.
    """

    ratio_to_baseline: float = 6.0
    share_of_limit: float = 0.95
    ratio_to_best_peer: float = 1.0
    tight_ratio_to_best_peer: float = 1.5


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """How to read results.

    Attributes:
        subject: System that the report is about. Systems whose names begin with it and a dash
            are settings of it, not peers.
        baseline: System that stands for what people run today.
        goal: Share of requests that must meet their objective.
        cdf_rate_per_s: Rate of the distributions of TTFT; None takes the one that most systems
            were measured at.
        timeline: Timeline file of a FlowPrefill server, for the picture of a burst.
        targets: To judge.
    """

    subject: str = "flowprefill"
    baseline: str = "stock"
    goal: float = 0.9
    cdf_rate_per_s: float | None = None
    timeline: Path | None = None
    targets: Targets = Targets()
