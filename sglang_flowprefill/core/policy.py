"""What a policy is: an order among the prefills that could run now.

A policy maps a candidate to a sort key; the smallest key runs. Keys of one policy compare with
each other only, and end in the arrival time, so that the order is total in practice. The
policies themselves are in ``policies/``.
"""

from dataclasses import dataclass
from typing import Protocol

PolicyKey = tuple[float, ...]

MIN_PATIENCE_S = 0.1
"""Least patience: of a prompt of few tokens with an objective of few milliseconds."""


@dataclass(slots=True, init=False)
class Candidate:
    """A waiting request or a started batch, seen as something that could run now.

    Never changed once made. Not frozen all the same: making it would cost three times as much,
    and a round after a burst makes one per request.

    Attributes:
        arrival_s: When it arrived.
        ttft_slo_s: Its objective in seconds.
        remaining_s: Predicted seconds of prefill still needed.
        patience_s: What its waiting is measured by: its objective, or its own work if that is
            longer. A claim that nobody could meet makes a request late, not impatient.
        is_degraded: Admitted only to be served after others.
        is_soft: Nobody asked for its objective.
        deadline_s: Latest time of a first token that meets the objective.
        latest_start_s: Latest time to run on undisturbed and meet the deadline. From then on it
            is doomed.
    """

    arrival_s: float
    ttft_slo_s: float
    remaining_s: float
    patience_s: float
    is_degraded: bool
    is_soft: bool
    deadline_s: float
    latest_start_s: float

    def __init__(
        self,
        arrival_s: float,
        ttft_slo_s: float,
        remaining_s: float,
        is_degraded: bool = False,
        own_s: float = 0.0,
        *,
        is_soft: bool = False,
    ) -> None:
        self.arrival_s = arrival_s
        self.ttft_slo_s = ttft_slo_s
        self.remaining_s = remaining_s
        self.is_degraded = is_degraded
        self.is_soft = is_soft
        # Computed once: a round reads them for every request in the queue. In this call alone,
        # not even max(): it is most of what a request costs that a round sees for the first time.
        patience_s = MIN_PATIENCE_S
        if ttft_slo_s > patience_s:  # noqa: PLR1730
            patience_s = ttft_slo_s
        if remaining_s > patience_s:  # noqa: PLR1730
            patience_s = remaining_s
        if own_s > patience_s:  # noqa: PLR1730
            patience_s = own_s
        self.patience_s = patience_s
        self.deadline_s = deadline_s = arrival_s + ttft_slo_s
        self.latest_start_s = deadline_s - remaining_s

    def slack_s(self, now_s: float) -> float:
        """Seconds it could still wait and meet its deadline. Zero or negative: doomed."""
        return self.latest_start_s - now_s

    def ahead_by(self, margin_s: float) -> "Candidate":
        """Return it as it would be, had it come and worked this much earlier.

        Its deadline is that much earlier, its remaining work that much less, its slack the same.
        A newcomer that beats this one is better by more than the margin, in every policy, and
        whatever the sign of anybody's slack.
        """
        return Candidate(
            self.arrival_s - margin_s,
            self.ttft_slo_s,
            self.remaining_s - margin_s,
            self.is_degraded,
            self.patience_s,
            is_soft=self.is_soft,
        )


class Policy(Protocol):
    """An order among candidates.

    Attributes:
        may_preempt: False if a prefill, once started, runs before all others until it ends.
        lent_share: Share of the first feasible candidate's slack in which the shortest doomed one
            may run before it; 0 for none.
    """

    @property
    def may_preempt(self) -> bool: ...  # noqa: D102 (documented above)
    @property
    def lent_share(self) -> float: ...  # noqa: D102

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:
        """Return the sort key of a candidate; smaller runs first."""
        ...
