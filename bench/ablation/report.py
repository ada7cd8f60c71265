"""What an ablation leaves behind: a table for each rate, and a picture."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.ablation.points import AblationLevel
from bench.ablation.variations import DEFAULT, VARIATIONS
from bench.goodput.numbers import share_text
from bench.results.picture import INK, SERIES, canvas, save

_NOTHING = "-"


def print_ablation(title: str, levels: Sequence[AblationLevel], console: Console) -> None:
    """Print a table for each rate."""
    for rate in dict.fromkeys(level.rate_per_s for level in levels):
        at_rate = [level for level in levels if level.rate_per_s == rate]
        console.print(ablation_table(f"{title}, {rate:g} requests/s", at_rate))


def ablation_table(title: str, levels: Sequence[AblationLevel]) -> Table:
    """Set the variations of one rate below one another."""
    reference = next((level for level in levels if level.variation == DEFAULT), None)
    classes = list(levels[0].class_attained)
    table = Table(title=title)
    headings = ("variation", "in time", "against default", *classes, "worst")
    use = ("wait ms p50 / p99", "switch ms", "rounds", "preempted", "CPU cores")
    for heading in (*headings, *use):
        table.add_column(heading, justify="left" if heading == "variation" else "right")
    group = None
    for level in levels:
        if VARIATIONS[level.variation].group != group:
            group = VARIATIONS[level.variation].group
            table.add_section()
        table.add_row(level.variation, *_cells(level, reference, classes))
    return table


def _cells(
    level: AblationLevel, reference: AblationLevel | None, classes: Sequence[str]
) -> list[str]:
    by_class = level.class_attained
    worst = min(by_class.items(), key=lambda item: item[1])
    num_requests = len(level.points[0].rows)
    waits = (_milliseconds(level.use("wait_p50_s")), _milliseconds(level.use("wait_p99_s")))
    return [
        share_text([point.summary.overall.attained for point in level.points], num_requests),
        _gain(level, reference),
        *(f"{by_class[name]:.1%}" if name in by_class else _NOTHING for name in classes),
        f"{worst[0]} {worst[1]:.1%}",
        " / ".join(waits),
        _milliseconds(level.use("switch_p50_s")),
        f"{level.use('rounds_per_request'):.1f}",
        f"{level.use('preemptions_per_request'):.2f}",
        f"{level.use('scheduler_cores'):.2f}",
    ]


def _gain(level: AblationLevel, reference: AblationLevel | None) -> str:
    """Write the difference in points, seed by seed."""
    gain = None if reference is None or reference is level else level.gain_over(reference)
    if gain is None:
        return _NOTHING
    middle = f"{gain.median * 100:+.1f}"
    is_one = gain.least == gain.most
    return middle if is_one else f"{middle} ({gain.least * 100:+.1f} to {gain.most * 100:+.1f})"


def _milliseconds(value_s: float | None) -> str:
    if value_s is None:
        return _NOTHING
    value_ms = value_s * 1000
    return f"{value_ms:.1f}" if value_ms < 10 else f"{value_ms:.0f}"


def draw_ablation(title: str, levels: Sequence[AblationLevel], folder: Path) -> None:
    """Draw attainment of every variation, a colour for each rate, its classes as small dots."""
    names = list(dict.fromkeys(level.variation for level in levels))
    rates = list(dict.fromkeys(level.rate_per_s for level in levels))
    with canvas(1.2 + 0.26 * len(names)) as (figure, (axis,)):
        for level in levels:
            i = rates.index(level.rate_per_s)
            place = names.index(level.variation) + (i - (len(rates) - 1) / 2) * 0.25
            colour, attained = SERIES[i % len(SERIES)], level.attained
            shares = list(level.class_attained.values())
            axis.plot(shares, [place] * len(shares), "|", color=colour, alpha=0.7)
            axis.plot([attained.least, attained.most], [place] * 2, color=colour)
            axis.plot(attained.median, place, "o", color=colour)
        for i, rate in enumerate(rates):
            axis.plot([], [], "o", color=SERIES[i % len(SERIES)], label=f"{rate:g} requests/s")
        axis.axvline(0.9, color=INK, linestyle=":", linewidth=0.9)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.xaxis.set_major_formatter(lambda share, _position: f"{share:.0%}")
        axis.set_xlabel("in time; dot: all, median and range of seeds; ticks: classes")
        figure.legend(loc="outside lower center", ncols=max(1, len(rates)))
        save(figure, "ablation", "One setting changed at a time", "", folder, measured=title)
