"""What the searches of one kind say together: pure functions on results."""

from collections.abc import Sequence

from bench.goodput.result import Search, SystemResult


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


def paired_ratios(searches: Sequence[Search], others: Sequence[Search]) -> list[float]:
    """Return, for each seed that both have an answer for, one's rate over the other's."""
    by_seed = {search.seed: search.max_rate_per_s for search in others}
    return [s.max_rate_per_s / by_seed[s.seed] for s in searches if by_seed.get(s.seed)]


def worst_class(system: SystemResult, searches: Sequence[Search]) -> tuple[str, float] | None:
    """Return the class that fared worst at the answers, and its share; None without answers."""
    probes = (system.best_probe(search) for search in searches)
    worst = [probe.worst_class for probe in probes if probe is not None and probe.worst_class]
    return min(worst, key=lambda item: item[1], default=None)
