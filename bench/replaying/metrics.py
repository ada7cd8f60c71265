"""Metrics of a replay: pure functions on its rows.

Attainment is the share of *all* requests whose TTFT met its objective, and whose time per output
token met its own where there is one; a request that failed or timed out is a miss. Percentiles are
nearest-rank over all requests too, a failed one counting as infinitely slow (``None`` here, because
JSON has no infinity): leaving failures out would reward a server for dropping its slowest requests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.replaying.row import RequestRow
from sglang_flowprefill.core.stats import is_attained


@dataclass(frozen=True, slots=True)
class TtftSummary:
    """TTFT of a group of requests.

    Attributes:
        num_requests: All of them.
        num_errors: Those that failed or timed out.
        attained: Share that met the objective, 0 to 1.
        p50_s: Median TTFT; None where the percentile falls on a failed request.
        p90_s: 90th percentile.
        p99_s: 99th percentile.
        max_s: The slowest.
    """

    num_requests: int
    num_errors: int
    attained: float
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    max_s: float | None


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """One replay in numbers.

    Attributes:
        overall: All requests.
        classes: By class, tightest objective first.
        worst_class: The class with the lowest attainment, which an overall share can hide.
        attained_from_schedule: Overall attainment with TTFT counted from the scheduled send.
        lateness_p99_s: 99th percentile of the client's lateness.
        lateness_max_s: Its worst.
        duration_s: Start of the replay to the last answer.
    """

    overall: TtftSummary
    classes: dict[str, TtftSummary]
    worst_class: str
    attained_from_schedule: float
    lateness_p99_s: float
    lateness_max_s: float
    duration_s: float


def summarise(rows: Sequence[RequestRow]) -> ReplaySummary:
    """Summarise the rows of one replay, at least one."""
    by_class = rows_by_class(rows)
    classes = {name: summarise_ttft(group) for name, group in by_class.items()}
    lateness_s = [row.lateness_s for row in rows]
    return ReplaySummary(
        overall=summarise_ttft(rows),
        classes=classes,
        worst_class=min(classes, key=lambda name: classes[name].attained),
        attained_from_schedule=sum(_is_met(row.ttft_from_schedule_s, row) for row in rows)
        / len(rows),
        lateness_p99_s=percentile(lateness_s, 0.99),
        lateness_max_s=max(lateness_s),
        duration_s=max(row.finished_s or row.sent_s for row in rows),
    )


def summarise_ttft(rows: Sequence[RequestRow]) -> TtftSummary:
    """Summarise a group of rows, at least one."""
    ttfts_s = [math.inf if row.ttft_s is None else row.ttft_s for row in rows]
    return TtftSummary(
        num_requests=len(rows),
        num_errors=sum(row.error is not None for row in rows),
        attained=attainment(rows),
        p50_s=_finite(percentile(ttfts_s, 0.50)),
        p90_s=_finite(percentile(ttfts_s, 0.90)),
        p99_s=_finite(percentile(ttfts_s, 0.99)),
        max_s=_finite(max(ttfts_s)),
    )


def attainment(rows: Sequence[RequestRow]) -> float:
    """Return the share of rows, at least one, whose TTFT met its objective."""
    return sum(is_met(row) for row in rows) / len(rows)


def rows_by_class(rows: Sequence[RequestRow]) -> dict[str, list[RequestRow]]:
    """Group rows by class, the tightest objective first."""
    groups: dict[str, list[RequestRow]] = {}
    for row in sorted(rows, key=lambda row: (row.slo_ttft_s, row.slo_class)):
        groups.setdefault(row.slo_class, []).append(row)
    return groups


def median_by_class(summaries: Sequence[ReplaySummary]) -> dict[str, float]:
    """Return the median attainment of each class over the replays in which it occurs."""
    names = dict.fromkeys(name for summary in summaries for name in summary.classes)
    return {
        name: median(s.classes[name].attained for s in summaries if name in s.classes)
        for name in names
    }


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the nearest-rank percentile: the smallest value with that share at or below it.

    It is always one of the values, so infinities are safe.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5)
    2.0
    """
    # Rounded first: 0.55 * 100 is 55.00000000000001 in binary.
    rank = math.ceil(round(fraction * len(values), 9))
    return sorted(values)[max(1, rank) - 1]


def is_met(row: RequestRow) -> bool:
    """Return whether a request met its objectives."""
    return _is_met(row.ttft_s, row)


def _is_met(ttft_s: float | None, row: RequestRow) -> bool:
    if ttft_s is None or not is_attained(ttft_s, row.slo_ttft_s):
        return False
    return row.slo_tpot_s is None or row.tpot_s is None or row.tpot_s <= row.slo_tpot_s


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
