"""Systems asked for the same work in rounds, and compared within each round.

A machine that slows down slows all systems of a round, so that ratios within rounds tell more
than the medians of each system.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

CaseT = TypeVar("CaseT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class PairedSample(Generic[CaseT]):
    """What one system took for one case in one round.

    Attributes:
        system: Who was asked.
        round_index: In which round.
        case: What for; equal for all systems.
        seconds: How long it took.
    """

    system: str
    round_index: int
    case: CaseT
    seconds: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the ends of some numbers.

    Attributes:
        median: The middle.
        least: The smallest.
        most: The largest.
    """

    median: float
    least: float
    most: float

    def text(self, digits: int) -> str:
        """Write it with this many digits after the point."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.most:.{digits}f})"


@dataclass(frozen=True, slots=True)
class PairedSummary(Generic[CaseT]):
    """One system's rounds with one case.

    Attributes:
        system: Its name.
        case: What it was asked for.
        num_rounds: How often.
        seconds: Over rounds.
        ratio: Over rounds, its time over the reference's of the same round; None where no round
            has both.
    """

    system: str
    case: CaseT
    num_rounds: int
    seconds: Spread
    ratio: Spread | None


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least one number."""
    return Spread(median(values), min(values), max(values))


def summarise_pairs(
    samples: Sequence[PairedSample[CaseT]], reference: str
) -> list[PairedSummary[CaseT]]:
    """Compare each system with the reference, round by round, in order of first appearance."""
    reference_s = {(s.case, s.round_index): s.seconds for s in samples if s.system == reference}
    groups: dict[tuple[CaseT, str], list[PairedSample[CaseT]]] = {}
    for sample in samples:
        groups.setdefault((sample.case, sample.system), []).append(sample)
    summaries = []
    for (case, system), group in groups.items():
        ratios = [
            s.seconds / reference_s[case, s.round_index]
            for s in group
            if (case, s.round_index) in reference_s
        ]
        summaries.append(
            PairedSummary(
                system=system,
                case=case,
                num_rounds=len(group),
                seconds=spread([s.seconds for s in group]),
                ratio=spread(ratios) if ratios else None,
            )
        )
    return summaries
