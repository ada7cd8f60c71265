"""The table of a goodput search."""

from rich.console import Console
from rich.table import Table

from bench.goodput.analysis import paired_ratios, shares_of_limit, spread_of, worst_class
from bench.goodput.numbers import NOTHING, goodput_text, ratio_text
from bench.goodput.result import GoodputResult, SystemResult

_HEADINGS = ("max req/s", "of its limit", "first over it", "worst class there")


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
        table.add_row(system.name, *(cells or [NOTHING] * len(_HEADINGS)))
    return table


def _cells(
    system: SystemResult, first: SystemResult, slo_scale: float, goal: float, *, every_class: bool
) -> list[str] | None:
    searches = system.searches_for(slo_scale, goal, every_class=every_class)
    if not searches:
        return None
    reference = first.searches_for(slo_scale, goal, every_class=every_class)
    limit_shares = shares_of_limit(system, searches)
    worst = worst_class(system, searches)
    return [
        goodput_text(searches),
        f"{spread_of(limit_shares).median:.0%}" if limit_shares else NOTHING,
        NOTHING if system is first else ratio_text(paired_ratios(reference, searches)),
        f"{worst[0]} {worst[1]:.0%}" if worst else NOTHING,
    ]
