"""Which systems, rates and probes of a result a report shows."""

from collections.abc import Sequence

from bench.errors import UsageError
from bench.goodput.analysis import greatest_loads, median_goodput, probes_of
from bench.goodput.result import GoodputResult, Probe, SystemResult
from bench.goodput_report.options import ReportOptions

_MAX_LINES = 7  # more cannot be told apart
_SAME_RATE = 0.025  # a probe this near to a stated rate counts as one at it


def reference_scale(result: GoodputResult) -> float:
    """Return the objective scale that headline numbers are of: 1, or the nearest searched.

    Raises:
        UsageError: No search of the result came to an end.
    """
    scales = result.slo_scales()
    if not scales:
        raise UsageError(
            f"no search has come to an end in {result.title!r}; run bench goodput again with the "
            "same --out, it goes on where it was"
        )
    return min(scales, key=lambda scale: abs(scale - 1.0))


def ranked(result: GoodputResult, options: ReportOptions, scale: float) -> list[SystemResult]:
    """Return systems by max goodput, best first."""
    return sorted(
        result.systems.values(),
        key=lambda system: median_goodput(system, scale, options.goal),
        reverse=True,
    )


def drawn_systems(result: GoodputResult, options: ReportOptions) -> list[SystemResult]:
    """Return the systems that pictures of lines show: subject, baseline, then the best."""
    scale = reference_scale(result)
    best = ranked(result, options, scale)
    first = [s for s in best if s.name in {options.subject, options.baseline}]
    others = [s for s in best if s not in first]
    shown = [*first, *others][:_MAX_LINES]
    return [s for s in best if s in shown]


def class_shares(probes: Sequence[Probe]) -> dict[str, list[float]]:
    """Return each class's shares, one of each replay."""
    shares: dict[str, list[float]] = {}
    for probe in probes:
        for name, share in probe.class_attained.items():
            shares.setdefault(name, []).append(share)
    return shares


def probes_at_maximum(system: SystemResult, scale: float, goal: float) -> list[Probe]:
    """Return the replay at the highest passing rate of each seed."""
    return probes_of(system, greatest_loads(system, scale, goal))


def common_rate(
    systems: Sequence[SystemResult],
    scales: Sequence[float],
    *,
    whole_only: bool = False,
) -> float | None:
    """Return the rate that most systems were measured at in most scales, the highest of several.

    Searches choose their own rates, so that only few are common to all.
    """
    rates = {p.rate_per_s for s in systems for p in s.probes if not (whole_only and p.is_abandoned)}
    at = whole_probes_at if whole_only else probes_at
    covered = {
        rate: sum(bool(at(system, scale, rate)) for system in systems for scale in scales)
        for rate in rates
    }
    if not covered or max(covered.values()) < 2:
        return None
    best = max(covered.values())
    return max(rate for rate, count in covered.items() if count == best)


def probes_at(system: SystemResult, scale: float, rate: float) -> list[Probe]:
    """Return the probes of one objective scale at about a rate."""
    return [
        p
        for p in system.probes
        if p.slo_scale == scale and abs(p.rate_per_s / rate - 1) <= _SAME_RATE
    ]


def whole_probes_at(system: SystemResult, scale: float, rate: float) -> list[Probe]:
    """Return those that were not ended early."""
    return [p for p in probes_at(system, scale, rate) if not p.is_abandoned]


def worst_shares(probes: Sequence[Probe]) -> list[float]:
    """Return the share of the worst class in each replay."""
    return [named[1] for probe in probes if (named := probe.worst_class)]
