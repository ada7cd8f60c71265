"""Which rate to try next, and what the tries so far say.

All that a search knows are its probes, so that one that was interrupted goes on by being given
those again. Attainment is taken to fall with the rate: the answer lies between the lowest rate
that failed and the highest below it that passed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log, sqrt

# With one end of the bracket only there is nothing to halve: go up or down, first by equal steps,
# since starts are mostly near, then each time further.
_NUM_EQUAL_STEPS = 2
_LARGEST_STEP = 2.0
_MOST_DOUBLINGS = 30  # of the step's logarithm; far beyond the largest step


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one probe says of one goal.

    Attributes:
        rate_per_s: Offered rate.
        passed: Whether the goal was met.
    """

    rate_per_s: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Bracket:
    """Between which rates the answer lies.

    Attributes:
        passed_per_s: Highest rate that passed below the lowest that failed; 0 if none did.
        failed_per_s: Lowest rate that failed; infinite if none did.
    """

    passed_per_s: float
    failed_per_s: float

    @property
    def is_closed(self) -> bool:
        """Whether it has both ends."""
        return self.passed_per_s > 0 and self.failed_per_s != float("inf")


def bracket_of(verdicts: Iterable[Verdict]) -> Bracket:
    """Return what the probes so far leave open."""
    known = list(verdicts)
    failed_per_s = min((v.rate_per_s for v in known if not v.passed), default=float("inf"))
    passed = (v.rate_per_s for v in known if v.passed and v.rate_per_s < failed_per_s)
    return Bracket(max(passed, default=0.0), failed_per_s)


def next_rate(
    verdicts: Iterable[Verdict],
    start_per_s: float,
    *,
    step: float,
    resolution: float,
    lowest_per_s: float,
) -> float | None:
    """Return the rate to try next, or None when the search is over.

    Args:
        verdicts: Of this search so far.
        start_per_s: A guess at the answer.
        step: First two factors up or down from there, above 1; the next is its square, and so on.
        resolution: Over when the bracket is narrower than this share, such as 0.025.
        lowest_per_s: Over when a rate as low as this has failed.
    """
    known = list(verdicts)
    bracket = bracket_of(known)
    if not known:
        return start_per_s
    if bracket.is_closed:
        is_narrow = bracket.failed_per_s <= bracket.passed_per_s * (1 + resolution)
        return None if is_narrow else sqrt(bracket.passed_per_s * bracket.failed_per_s)
    num_doublings = min(max(0, len(known) - _NUM_EQUAL_STEPS), _MOST_DOUBLINGS)
    factor = exp(min(log(step) * 2**num_doublings, log(_LARGEST_STEP)))
    if bracket.passed_per_s:
        return bracket.passed_per_s * factor
    if bracket.failed_per_s <= lowest_per_s:
        return None
    return max(lowest_per_s, bracket.failed_per_s / factor)
