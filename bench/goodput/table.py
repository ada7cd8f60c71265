"""The table of a goodput search."""

from statistics import median

from rich.console import Console
from rich.table import Table

from bench.goodput.analysis import paired_ratios, shares_of_limit, unanswered_below, worst_class
from bench.goodput.result import GoodputResult, SystemResult

_HEADINGS = ("max req/s", "range", "of its limit", "ours, paired", "worst class there")


def print_goodput(result: GoodputResult, console: Console) -> None:
    """Print a table for every objective scale and goal that was searched."""
    searches = [search for system in result.systems.values() for search in system.searches]
    for slo_scale, goal, every_class in sorted(
        {(s.slo_scale, s.goal, s.every_class) for s in searches}
    ):
        console.print(_table(result, slo_scale, goal, every_class=every_class))


def _table(result: GoodputResult, slo_scale: float, goal: float, *, every_class: bool) -> Table:
    who = "of every class" if every_class else "of all requests"
    table = Table(title=f"{result.title}; {goal:.0%} {who} in time, objectives x{slo_scale:g}")
    table.add_column("system", overflow="fold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    first, *_ = result.systems.values()
    for system in result.systems.values():
        cells = _cells(system, first, slo_scale, goal, every_class=every_class)
        table.add_row(system.name, *(cells or ["-"] * len(_HEADINGS)))
    return table


def _cells(
    system: SystemResult, first: SystemResult, slo_scale: float, goal: float, *, every_class: bool
) -> list[str] | None:
    searches = system.searches_for(slo_scale, goal, every_class=every_class)
    found = system.goodput(slo_scale, goal, every_class=every_class)
    if found is None:
        return None
    shares = shares_of_limit(system, searches)
    reference = first.searches_for(slo_scale, goal, every_class=every_class)
    paired = [] if system is first else paired_ratios(reference, searches)
    ratios = [ratio.value for ratio in paired]
    more_than = "> " if any(ratio.is_bound for ratio in paired) else ""
    worst = worst_class(system, searches)
    bound = unanswered_below(searches)
    middle, least, most = (
        f"{rate:.2f}" if rate >= bound else f"< {bound:.2f}"
        for rate in (found.median, found.least, found.most)
    )
    return [
        middle,
        f"{least} - {most}",
        f"{median(shares):.0%}" if shares else "-",
        f"{more_than}{median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f})"
        if ratios
        else "-",
        f"{worst[0]} {worst[1]:.0%}" if worst else "-",
    ]
