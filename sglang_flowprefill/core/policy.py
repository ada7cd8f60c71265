"""Orders among prefills. Adding one is one class here and one row in ``POLICY_TYPES``.

A policy maps a candidate to a sort key; the smallest key runs. Keys of one policy compare with
each other only, and end in the arrival time, so that the order is total in practice.
"""

from dataclasses import dataclass
from typing import Protocol

PolicyKey = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting request or a started batch, seen as something that could run now.

    Attributes:
        arrival_s: When it arrived.
        ttft_slo_s: Its objective in seconds.
        remaining_s: Predicted seconds of prefill still needed.
    """

    arrival_s: float
    ttft_slo_s: float
    remaining_s: float

    @property
    def deadline_s(self) -> float:
        """Latest time of a first token that meets the objective."""
        return self.arrival_s + self.ttft_slo_s

    def slack_s(self, now_s: float) -> float:
        """Seconds it could still wait and meet its deadline. Negative: doomed."""
        return self.deadline_s - now_s - self.remaining_s


class Policy(Protocol):
    """An order among candidates."""

    may_preempt: bool

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:
        """Return the sort key of a candidate; smaller runs first."""
        ...


@dataclass(frozen=True, slots=True)
class Fcfs:
    """Arrival order, without preemption: what a plain queue does."""

    may_preempt: bool = False

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:  # noqa: ARG002 (protocol)
        """Order by arrival."""
        return (candidate.arrival_s,)


@dataclass(frozen=True, slots=True)
class SEdf:
    """Slack-aware earliest deadline first.

    Three tiers, earliest deadline first within each: requests past the starvation bound, then
    those that can still meet their deadline, then the doomed.

    Source: FlowPrefill, S-EDF: priority = sgn(slack) / deadline, highest first, slack 0 counting
    as negative. Differs: that formula prefers the *latest* deadline among the doomed and gives
    them no bound; here the earliest goes first, and a request older than ``starvation_factor``
    times its SLO goes before everything.
    """

    starvation_factor: float = 10.0
    may_preempt: bool = True

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:
        """Order by tier, then deadline, then arrival."""
        age_s = now_s - candidate.arrival_s
        if age_s > self.starvation_factor * candidate.ttft_slo_s:
            tier = 0.0
        elif candidate.slack_s(now_s) > 0.0:
            tier = 1.0
        else:
            tier = 2.0
        return (tier, candidate.deadline_s, candidate.arrival_s)


POLICY_TYPES: dict[str, type[SEdf] | type[Fcfs]] = {"s-edf": SEdf, "fcfs": Fcfs}
