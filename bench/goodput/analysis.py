"""What the searches of one kind say together: pure functions on results."""

from collections.abc import Sequence
from typing import NamedTuple

from bench.goodput.result import GoodputResult, Load, Probe, Search, SystemResult


class Ratio(NamedTuple):
    """One system's answer over another's, for one seed.

    Attributes:
        value: The other's lowest failed rate stands in where it met the goal at no rate.
        is_bound: Whether it does, so that the truth is more.
    """

    value: float
    is_bound: bool


def is_peer(system: str, subject: str) -> bool:
    """Tell whether a system is somebody else's: neither the subject nor a setting of it."""
    return system != subject and not system.startswith(f"{subject}-")


def median_goodput(
    system: SystemResult, scale: float, goal: float, *, every_class: bool = False
) -> float:
    """Return the median of max goodput; -1 where it was not searched, which sorts last."""
    found = system.goodput(scale, goal, every_class=every_class)
    return -1.0 if found is None else found.median


def best_peer(
    result: GoodputResult, subject: str, scale: float, goal: float, *, every_class: bool = False
) -> SystemResult | None:
    """Return the peer of a system with the highest median; None if there is none."""
    medians = {
        name: median_goodput(system, scale, goal, every_class=every_class)
        for name, system in result.systems.items()
        if is_peer(name, subject)
    }
    best = max(medians, key=medians.__getitem__, default=None)
    return None if best is None or medians[best] < 0 else result.systems[best]


def greatest_loads(system: SystemResult, scale: float, goal: float) -> list[Load]:
    """Return what a system bears at most, by seed; without seeds in which it met the goal never."""
    searches = system.searches_for(scale, goal)
    return [Load(s.max_rate_per_s, s.seed, scale) for s in searches if s.max_rate_per_s]


def probes_of(system: SystemResult, loads: Sequence[Load]) -> list[Probe]:
    """Return the whole replays of those loads that a system has any of."""
    return [probe for load in loads if (probe := system.probe_of(load))]


def shares_of_limit(system: SystemResult, searches: Sequence[Search]) -> list[float]:
    """Return, for each search that has an answer, its rate over the limit of its requests."""
    shares = []
    for search in searches:
        probe = system.best_probe(search)
        if probe is None:
            continue
        limit_per_s = system.limit_per_s([row.num_input_tokens for row in probe.rows])
        if limit_per_s:
            shares.append(search.max_rate_per_s / limit_per_s)
    return shares


def paired_ratios(searches: Sequence[Search], others: Sequence[Search]) -> list[Ratio]:
    """Return, for each seed that both were searched for, one's rate over the other's."""
    by_seed = {search.seed: search for search in others}
    pairs = [(ours, by_seed[ours.seed]) for ours in searches if ours.seed in by_seed]
    return [
        Ratio(
            ours.max_rate_per_s / (theirs.max_rate_per_s or theirs.failed_rate_per_s),
            is_bound=not theirs.max_rate_per_s,
        )
        for ours, theirs in pairs
    ]


def unanswered_below(searches: Sequence[Search]) -> float:
    """Return the rate under which answers of 0 lie; 0 where every search has an answer."""
    return max((s.failed_rate_per_s for s in searches if not s.max_rate_per_s), default=0.0)


def worst_class(system: SystemResult, searches: Sequence[Search]) -> tuple[str, float] | None:
    """Return the class that fared worst at the answers, and its share; None without answers."""
    probes = (system.best_probe(search) for search in searches)
    worst = [probe.worst_class for probe in probes if probe is not None and probe.worst_class]
    return min(worst, key=lambda item: item[1], default=None)
