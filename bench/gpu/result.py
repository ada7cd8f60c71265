"""What ``bench gpu`` has measured at one prompt length."""

from dataclasses import dataclass
from statistics import median

from bench.blocking.waits import WaitSummary


@dataclass(frozen=True, slots=True)
class CutResult:
    """One way of cutting at one length.

    Attributes:
        forwards_s: Undisturbed forward passes; rounds as of ``LengthResult.uncut_s``.
        waits_s: Of arrivals, raw.
        waits: Their summary.
        num_boundaries: Of one undisturbed pass.
    """

    forwards_s: list[float]
    waits_s: list[float]
    waits: WaitSummary
    num_boundaries: int


@dataclass(frozen=True, slots=True)
class LengthResult:
    """One prompt length.

    Attributes:
        num_tokens: The length.
        uncut_s: Forward passes without boundaries and cursor, the median of each round's.
        seconds_per_row: What operators were measured to take, by family.
        seconds_per_pair: Attention, per query-key pair.
        cuts: By name.
    """

    num_tokens: int
    uncut_s: list[float]
    seconds_per_row: dict[str, float]
    seconds_per_pair: float
    cuts: dict[str, CutResult]

    def tax(self, name: str) -> float:
        """Return the median over rounds of this cut's time over the uncut one's, less 1."""
        pairs = zip(self.cuts[name].forwards_s, self.uncut_s, strict=True)
        return median(cut_s / uncut_s for cut_s, uncut_s in pairs) - 1.0
