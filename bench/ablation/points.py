"""What one replay of an ablation found, and how it is kept in the result file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.errors import UsageError
from bench.replaying.metrics import ReplaySummary, median_by_class, summarise
from bench.replaying.row import RequestRow
from bench.results.paired import Spread, spread


@dataclass(frozen=True, slots=True)
class ServerUse:
    """What the server did for one replay.

    Attributes:
        rounds_per_request: Scheduling rounds.
        preemptions_per_request: Times an unfinished prefill made way.
        scheduler_cores: Processor time of the scheduler process per second of the replay. On a
            CPU it holds the model's arithmetic too.
        wait_p50_s: Until the next boundary, for an arrival at a random moment of the prefills
            that ran: the median; None if none ran.
        wait_p99_s: Its 99th percentile.
        switch_p50_s: From a yield to the start of whatever ran next, median; None without yields.
    """

    rounds_per_request: float
    preemptions_per_request: float
    scheduler_cores: float
    wait_p50_s: float | None
    wait_p99_s: float | None
    switch_p50_s: float | None


@dataclass(frozen=True, slots=True)
class AblationPoint:
    """One replay.

    Attributes:
        variation: Key of ``VARIATIONS``.
        rate_per_s: Offered rate.
        seed: Of workload and prompts.
        use: What the server did.
        rows: One per request.
    """

    variation: str
    rate_per_s: float
    seed: int
    use: ServerUse
    rows: tuple[RequestRow, ...]

    @property
    def summary(self) -> ReplaySummary:
        """Its rows in numbers."""
        return summarise(self.rows)


@dataclass(frozen=True, slots=True)
class AblationLevel:
    """All seeds of one variation at one rate, at least one.

    Attributes:
        variation: Its name.
        rate_per_s: Offered rate.
        points: By seed.
    """

    variation: str
    rate_per_s: float
    points: Sequence[AblationPoint]

    @property
    def attained(self) -> Spread:
        """Share that met its objective."""
        return spread([point.summary.overall.attained for point in self.points])

    @property
    def class_attained(self) -> dict[str, float]:
        """Median share by class, over the seeds in which the class occurs."""
        return median_by_class([point.summary for point in self.points])

    def gain_over(self, other: "AblationLevel") -> Spread | None:
        """Return the difference of attainment, seed by seed; None without a common seed."""
        theirs = {point.seed: point.summary.overall.attained for point in other.points}
        gains = [
            point.summary.overall.attained - theirs[point.seed]
            for point in self.points
            if point.seed in theirs
        ]
        return spread(gains) if gains else None

    def use(self, name: str) -> float | None:
        """Return the median of a field of ``ServerUse``; None where no seed has it."""
        values = [getattr(point.use, name) for point in self.points]
        known = [value for value in values if value is not None]
        return median(known) if known else None


def levels_of(points: Sequence[AblationPoint]) -> list[AblationLevel]:
    """Group points by rate, then variation, in the order measured."""
    keys = dict.fromkeys((point.rate_per_s, point.variation) for point in points)
    return [
        AblationLevel(
            variation,
            rate,
            [p for p in points if (p.rate_per_s, p.variation) == (rate, variation)],
        )
        for rate, variation in sorted(keys, key=lambda key: key[0])
    ]


def point_document(point: AblationPoint) -> dict[str, Any]:
    """Return a point as JSON-safe data."""
    rows = [asdict(row) | {"ttft_s": row.ttft_s} for row in point.rows]
    return asdict(point) | {"summary": asdict(point.summary), "rows": rows}


def read_points(path: Path, config: Mapping[str, Any]) -> list[AblationPoint]:
    """Read what an interrupted ablation has measured; nothing if it has not begun.

    Args:
        path: The result file.
        config: Of this run; that of the file must be the same.

    Raises:
        UsageError: It is another kind of file, or was measured with other options.
    """
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        points = [_read_point(point) for point in document["points"]]
        other = {k for k in config if config[k] != document["config"].get(k)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a result of bench ablation: {error!r}") from error
    if other:
        raise UsageError(
            f"{path} was measured with another {', '.join(sorted(other))}; give another --out"
        )
    return points


def _read_point(document: dict[str, Any]) -> AblationPoint:
    rows = tuple(
        RequestRow(**{k: v for k, v in row.items() if k != "ttft_s"}) for row in document["rows"]
    )
    return AblationPoint(
        document["variation"],
        document["rate_per_s"],
        document["seed"],
        ServerUse(**document["use"]),
        rows,
    )
