"""Plain sentences on how the subject of a report compares, each with its target.

Ratios are taken seed by seed, since both systems replayed the same requests, and stated with
their spread. A system that met the goal at no rate leaves a bound: its true maximum is below the
lowest rate at which it failed. Every spread holds the brackets of the searches: a target is met
only where even the lower ends reach it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.goodput.analysis import (
    best_peer,
    greatest_loads,
    paired_ratios,
    probes_of,
    shares_of_limit,
    spread_of,
)
from bench.goodput.numbers import ratio_text, spread_text
from bench.goodput.result import GoodputResult, SystemResult
from bench.goodput_report.options import ReportOptions
from bench.goodput_report.selection import probes_at_maximum, reference_scale, worst_shares
from bench.results.paired import Spread


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target, judged.

    Attributes:
        claim: What was measured, in a sentence without its full stop.
        outcome: ``met``, ``missed``, or ``met in the median`` where its spread begins below it.
        detail: The target and by how much.
    """

    claim: str
    outcome: str
    detail: str


def judge(result: GoodputResult, options: ReportOptions) -> list[Verdict]:
    """Judge what the result allows to judge."""
    subject = result.systems.get(options.subject)
    if subject is None:
        return []
    scale = reference_scale(result)
    tightest = min(result.slo_scales())
    targets = options.targets
    peer_target = targets.ratio_to_best_peer if scale >= 1 else targets.tight_ratio_to_best_peer
    peer = best_peer(result, subject.name, scale, options.goal)
    verdicts = [
        _against_baseline(result, subject, options, scale),
        _against_limit(subject, options, scale),
        _against_best_peer(result, subject, options, scale, peer_target),
        _worst_class(subject, peer, options, scale),
        _worst_class_under_one_load(subject, peer, options, scale),
        _against_best_peer(result, subject, options, scale, peer_target, every_class=True),
    ]
    if tightest < scale:
        target = targets.tight_ratio_to_best_peer
        verdicts.append(_against_best_peer(result, subject, options, tightest, target))
    return [verdict for verdict in verdicts if verdict is not None]


def _against_baseline(
    result: GoodputResult, subject: SystemResult, options: ReportOptions, scale: float
) -> Verdict | None:
    baseline = result.systems.get(options.baseline)
    if baseline is None:
        return None
    target = options.targets.ratio_to_baseline
    return _ratio_verdict(subject, baseline, options.goal, scale, target)


def _against_best_peer(
    result: GoodputResult,
    subject: SystemResult,
    options: ReportOptions,
    scale: float,
    target: float,
    *,
    every_class: bool = False,
) -> Verdict | None:
    peer = best_peer(result, subject.name, scale, options.goal, every_class=every_class)
    if peer is None:
        return None
    return _ratio_verdict(
        subject,
        peer,
        options.goal,
        scale,
        target,
        what="the best peer, ",
        every_class=every_class,
    )


def _ratio_verdict(
    subject: SystemResult,
    other: SystemResult,
    goal: float,
    scale: float,
    target: float,
    *,
    what: str = "",
    every_class: bool = False,
) -> Verdict | None:
    pairs = paired_ratios(
        *(system.searches_for(scale, goal, every_class=every_class) for system in (subject, other))
    )
    if not pairs:
        return None
    num_bounds = sum(ratio.is_bound for ratio in pairs)
    asked = f", asked of every class by itself ({goal:.0%} in time)," if every_class else ""
    claim = (
        f"Max goodput of {subject.name}{asked} is {ratio_text(pairs)} times that of "
        f"{what}{other.name}, with objectives x{scale:g}, over {_seeds(len(pairs))}"
    )
    if num_bounds:
        claim += f" (in {num_bounds} of which {other.name} met the goal at no rate offered)"
    return Verdict(claim, *_compare(spread_of(pairs), target, "times", is_bound=num_bounds > 0))


def _against_limit(subject: SystemResult, options: ReportOptions, scale: float) -> Verdict | None:
    limit = subject.physical_limit_per_s
    found = shares_of_limit(subject, subject.searches_for(scale, options.goal))
    if limit is None or not found:
        return None
    shares = spread_of(found)
    percent = Spread(shares.median * 100, shares.least * 100, shares.most * 100)
    claim = (
        f"Max goodput of {subject.name} is {spread_text(percent)} % of the physical limit, the "
        f"{limit:.2f} requests/s at which its unloaded prefills would fill all time"
    )
    return Verdict(claim, *_compare(percent, options.targets.share_of_limit * 100, "%"))


def _worst_class(
    subject: SystemResult, peer: SystemResult | None, options: ReportOptions, scale: float
) -> Verdict | None:
    """Compare worst classes, each system at its own highest passing rate."""
    if peer is None:
        return None
    ours = worst_shares(probes_at_maximum(subject, scale, options.goal))
    theirs = worst_shares(probes_at_maximum(peer, scale, options.goal))
    if not ours or not theirs:
        return None
    claim = (
        f"At its own max goodput the worst class of {subject.name} is in time in "
        f"{median(ours):.0%} of cases, that of the best peer, {peer.name}, in {median(theirs):.0%}"
    )
    return Verdict(claim, *_compare_shares(ours, theirs))


def _worst_class_under_one_load(
    subject: SystemResult, peer: SystemResult | None, options: ReportOptions, scale: float
) -> Verdict | None:
    """Compare worst classes where both replayed the most that the best peer bears."""
    if peer is None:
        return None
    loads = [load for load in greatest_loads(peer, scale, options.goal) if subject.probe_of(load)]
    if not loads:
        return None
    ours, theirs = (worst_shares(probes_of(system, loads)) for system in (subject, peer))
    claim = (
        f"Under one load, the most that the best peer, {peer.name}, bears, the worst class of "
        f"{subject.name} is in time in {median(ours):.0%} of cases, that of {peer.name} in "
        f"{median(theirs):.0%}, over {_seeds(len(loads))}"
    )
    return Verdict(claim, *_compare_shares(ours, theirs))


def _compare(value: Spread, target: float, unit: str, *, is_bound: bool = False) -> tuple[str, str]:
    """Return the outcome, and the target with the distance from it."""
    if value.least >= target:
        outcome = "met"
    elif value.median >= target:
        outcome = "met in the median"
    else:
        # A value that is only known from below cannot be said to miss.
        outcome = "not shown" if is_bound else "missed"
    distance = value.median / target - 1
    return outcome, f"target: at least {target:g} {unit}; the median is {distance:+.0%} from it"


def _compare_shares(ours: Sequence[float], theirs: Sequence[float]) -> tuple[str, str]:
    gap = (median(ours) - median(theirs)) * 100
    outcome = "met" if gap >= 0 else "missed"
    return outcome, f"target: no worse; the difference is {gap:+.0f} points"


def _seeds(count: int) -> str:
    return (
        "1 seed, so with the spread of its search only" if count == 1 else f"{count} paired seeds"
    )


def overall(verdicts: Sequence[Verdict]) -> str:
    """Count outcomes, for a headline."""
    num_met = sum(verdict.outcome.startswith("met") for verdict in verdicts)
    return f"{num_met} of {len(verdicts)} targets met"
