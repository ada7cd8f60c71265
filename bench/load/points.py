"""What a load sweep found: attainment and goodput at every load, and what they mean together."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.replaying.metrics import ReplaySummary, attainment, median_by_class, summarise
from bench.replaying.row import RequestRow


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One replay at one load.

    Attributes:
        load: Offered rate as a share of capacity.
        rate_per_s: Offered rate.
        seed: Of the workload.
        rows: One per request.
    """

    load: float
    rate_per_s: float
    seed: int
    rows: list[RequestRow]

    @property
    def summary(self) -> ReplaySummary:
        """Its rows in numbers."""
        return summarise(self.rows)

    @property
    def goodput_per_s(self) -> float:
        """Requests per second that met their TTFT objective, at the rate at which they came."""
        return attainment(self.rows) * self.rate_per_s


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """All replays at one load.

    Attributes:
        load: Offered rate as a share of capacity.
        points: At least one, with different seeds.
    """

    load: float
    points: Sequence[LoadPoint]

    @property
    def rate_per_s(self) -> float:
        """Offered rate."""
        return self.points[0].rate_per_s

    @property
    def attained(self) -> float:
        """Median share of requests that met their objective."""
        return median(point.summary.overall.attained for point in self.points)

    @property
    def attained_range(self) -> tuple[float, float]:
        """Its least and greatest."""
        shares = [point.summary.overall.attained for point in self.points]
        return min(shares), max(shares)

    @property
    def goodput_per_s(self) -> float:
        """Median goodput."""
        return median(point.goodput_per_s for point in self.points)

    @property
    def class_attained(self) -> dict[str, float]:
        """Median share by class, over the seeds in which the class occurs."""
        return median_by_class([point.summary for point in self.points])


def levels_of(points: Sequence[LoadPoint]) -> list[LoadLevel]:
    """Group points by load, lightest first."""
    loads = sorted({point.load for point in points})
    return [LoadLevel(load, [p for p in points if p.load == load]) for load in loads]


def peak_goodput_per_s(levels: Sequence[LoadLevel]) -> float:
    """Return the best goodput of any load."""
    return max(level.goodput_per_s for level in levels)
