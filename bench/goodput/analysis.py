"""What the searches of one kind say together: pure functions on results."""

from collections.abc import Sequence
from math import inf, isinf
from statistics import median
from typing import NamedTuple

from bench.goodput.result import GoodputResult, Load, Probe, Search, SystemResult
from bench.results.paired import Spread


class Answer(NamedTuple):
    """What a search, or two, say: a number, and the ends between which the truth lies.

    A search leaves a bracket open. What is computed from its answer is no better known.

    Attributes:
        value: From the highest rates that passed.
        least: No less than this.
        most: No more; infinite where nothing says so.
    """

    value: float
    least: float
    most: float

    @property
    def is_bound(self) -> bool:
        """Whether it is known from below only."""
        return isinf(self.most)


def answers(searches: Sequence[Search]) -> list[Answer]:
    """Return the rate of each search, with its bracket."""
    return [Answer(s.max_rate_per_s, s.max_rate_per_s, s.failed_rate_per_s) for s in searches]


def spread_of(found: Sequence[Answer]) -> Spread:
    """Return the median of at least one answer, and the ends of all brackets.

    This is what a second run of the same searches can be expected to fall in, on a machine that
    is as fast: a range of the values alone would leave out what the searches did not resolve.
    """
    return Spread(
        median(answer.value for answer in found),
        min(answer.least for answer in found),
        max(answer.most for answer in found),
    )


def is_peer(system: str, subject: str) -> bool:
    """Tell whether a system is somebody else's: neither the subject nor a setting of it."""
    return system != subject and not system.startswith(f"{subject}-")


def median_goodput(
    system: SystemResult, scale: float, goal: float, *, every_class: bool = False
) -> float:
    """Return the median of max goodput; -1 where it was not searched, which sorts last."""
    rates = system.max_rates(scale, goal, every_class=every_class)
    return median(rates) if rates else -1.0


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


def shares_of_limit(system: SystemResult, searches: Sequence[Search]) -> list[Answer]:
    """Return, for each search that met its goal, its rate over the limit of its requests."""
    shares = []
    for search in searches:
        probe = system.best_probe(search)
        if probe is None:
            continue
        limit_per_s = system.limit_per_s([row.num_input_tokens for row in probe.rows])
        if limit_per_s:
            (rate,) = answers([search])
            shares.append(Answer(*(end / limit_per_s for end in rate)))
    return shares


def paired_ratios(searches: Sequence[Search], others: Sequence[Search]) -> list[Answer]:
    """Return, for each seed that both were searched for, one's rate over the other's.

    Where the other met the goal at no rate, the ratio is known from below only, and its value is
    that bound.
    """
    by_seed = {search.seed: search for search in others}
    pairs = [(ours, by_seed[ours.seed]) for ours in searches if ours.seed in by_seed]
    ratios = []
    for ours, theirs in pairs:
        least = ours.max_rate_per_s / theirs.failed_rate_per_s
        passed = theirs.max_rate_per_s
        ratios.append(
            Answer(ours.max_rate_per_s / passed, least, ours.failed_rate_per_s / passed)
            if passed
            else Answer(least, least, inf)
        )
    return ratios


def unanswered_below(searches: Sequence[Search]) -> float:
    """Return the rate under which answers of 0 lie; 0 where every search has an answer."""
    return max((s.failed_rate_per_s for s in searches if not s.max_rate_per_s), default=0.0)


def worst_class(system: SystemResult, searches: Sequence[Search]) -> tuple[str, float] | None:
    """Return the class that fared worst at the answers, and its share; None without answers."""
    probes = (system.best_probe(search) for search in searches)
    worst = [probe.worst_class for probe in probes if probe is not None and probe.worst_class]
    return min(worst, key=lambda item: item[1], default=None)
