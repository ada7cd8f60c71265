"""Pictures of how much load systems bear; None is returned where data for one lack."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from bench.goodput.analysis import answers, is_peer, spread_of
from bench.goodput.numbers import median_goodput_text
from bench.goodput.result import GoodputResult, Probe, Search, SystemResult
from bench.goodput_report.options import ReportOptions
from bench.goodput_report.selection import (
    common_rate,
    drawn_systems,
    probes_at,
    ranked,
    reference_scale,
)
from bench.results.picture import INK, Picture, SeriesStyles, canvas, save


def draw_goodput(result: GoodputResult, options: ReportOptions, folder: Path) -> Picture | None:
    """Draw a bar for each system: median of max goodput, its seeds as dots, the physical limit."""
    scale = reference_scale(result)
    systems = [s for s in ranked(result, options, scale) if s.max_rates(scale, options.goal)]
    subject = result.systems.get(options.subject)
    limit = None if subject is None else subject.physical_limit_per_s
    with canvas(0.9 + 0.3 * len(systems)) as (figure, (axis,)):
        for place, system in enumerate(systems):
            searches = system.searches_for(scale, options.goal)
            _draw_bar(axis, place, searches, _bar_colour(system, options))
        if limit is not None:
            axis.axvline(limit, color=INK, linestyle="--", linewidth=1)
            axis.annotate(
                f"physical limit {limit:.2f}",
                (limit, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-3, 2),
                textcoords="offset points",
                ha="right",
            )
        axis.set_yticks(range(len(systems)), [system.name for system in systems])
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set_xlim(left=0)
        axis.margins(x=0.12)
        axis.set_xlabel("requests/s")
        return save(
            figure,
            "goodput",
            f"Max goodput: {options.goal:.0%} in time",
            "Bar: median over seeds; dots: seeds; line: from the lowest rate that passed to the "
            "highest that failed. Blue: the subject; "
            "orange: peers; green: other settings of the subject. The dashed line is where the "
            "subject's unloaded prefills would fill all time.",
            folder,
            measured=result.title,
        )


def _bar_colour(system: SystemResult, options: ReportOptions) -> str:
    styles = SeriesStyles(["subject", "peer", "setting"])
    role = "peer" if is_peer(system.name, options.subject) else "setting"
    return styles.colour("subject" if system.name == options.subject else role)


def _draw_bar(axis: Axes, place: int, searches: Sequence[Search], colour: str) -> None:
    found = spread_of(answers(searches))
    rates = [search.max_rate_per_s for search in searches]
    axis.barh(place, found.median, 0.62, color=colour, alpha=0.85)
    axis.plot([found.least, found.most], [place, place], color=INK, linewidth=1.2)
    axis.plot(rates, [place] * len(rates), ".", color=INK, markersize=4)
    axis.annotate(
        median_goodput_text(searches),
        (found.most, place),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
    )


def draw_attainment(result: GoodputResult, options: ReportOptions, folder: Path) -> Picture | None:
    """Draw attainment of all requests against the offered rate."""
    scale = reference_scale(result)
    systems = drawn_systems(result, options)
    styles = SeriesStyles([system.name for system in systems])
    with canvas(3.6) as (figure, (axis,)):
        for system in systems:
            probes = [p for p in system.probes if p.slo_scale == scale]
            _draw_probes(axis, probes, styles.line(system.name))
        _goal_line(axis, options)
        axis.set(xlabel="offered requests/s", xscale="log", ylim=(0, 1.03))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside lower center", ncols=2)
        return save(
            figure,
            "attainment",
            "In time, by offered rate",
            "A filled marker is one replay of one seed; the line joins medians of each rate. "
            "Hollow markers are replays that were ended once the goal was out of reach: the most "
            f"that they could have attained. Dotted: {options.goal:.0%}."
            + _left_out(result, systems),
            folder,
            measured=result.title,
        )


def _draw_probes(axis: Axes, probes: Sequence[Probe], style: dict[str, Any]) -> None:
    points = {"marker": style["marker"], "color": style["color"], "linestyle": "none"}
    whole = [p for p in probes if not p.is_abandoned]
    ended = [p for p in probes if p.is_abandoned]
    axis.plot([p.rate_per_s for p in whole], [p.attained for p in whole], alpha=0.75, **points)
    axis.plot(
        [p.rate_per_s for p in ended],
        [p.attained for p in ended],
        markerfacecolor="none",
        alpha=0.75,
        **points,
    )
    rates = sorted({p.rate_per_s for p in probes})
    middles = [median(p.attained for p in probes if p.rate_per_s == rate) for rate in rates]
    axis.plot(rates, middles, **style | {"marker": "none", "label": None})
    axis.plot([], [], **style)  # the legend's, with both line and marker


def _goal_line(axis: Axes, options: ReportOptions) -> None:
    axis.axhline(options.goal, color=INK, linewidth=0.9, linestyle=":")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def draw_slo_scales(result: GoodputResult, options: ReportOptions, folder: Path) -> Picture | None:
    """Draw max goodput, and attainment at one rate, against the objective scale."""
    scales = result.slo_scales()
    if len(scales) < 2:
        return None
    systems = drawn_systems(result, options)
    styles = SeriesStyles([system.name for system in systems])
    rate = common_rate(systems, scales)
    with canvas(5.4 if rate else 3.4, num_rows=2 if rate else 1) as (figure, axes):
        for system in systems:
            searches = {scale: system.searches_for(scale, options.goal) for scale in scales}
            known = {scale: spread_of(answers(some)) for scale, some in searches.items() if some}
            bars = [
                [found.median - found.least for found in known.values()],
                [found.most - found.median for found in known.values()],
            ]
            middles = [found.median for found in known.values()]
            axes[0].errorbar(list(known), middles, bars, capsize=2, **styles.line(system.name))
        axes[0].set(ylabel="max goodput, requests/s", xlabel="scale of all TTFT objectives")
        axes[0].set_ylim(bottom=0)
        if rate is not None:
            _draw_attainment_by_scale(axes[1], systems, scales, rate, styles)
            _goal_line(axes[1], options)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        below = f" Below: share in time at {rate:.2f} requests/s." if rate else ""
        return save(
            figure,
            "slo-scale",
            "Tighter and looser objectives",
            "Every objective times the scale, each scale replayed anew. Median over seeds; "
            f"bars: lowest rate that passed to highest that failed.{below} Hollow: at most this "
            f"much. Dotted: {options.goal:.0%}.",
            folder,
            measured=result.title,
        )


def _draw_attainment_by_scale(
    axis: Axes,
    systems: Sequence[SystemResult],
    scales: Sequence[float],
    rate: float,
    styles: SeriesStyles,
) -> None:
    for system in systems:
        found = {scale: probes_at(system, scale, rate) for scale in scales}
        known = {scale: probes for scale, probes in found.items() if probes}
        style = styles.line(system.name)
        middles = [median(p.attained for p in probes) for probes in known.values()]
        axis.plot(list(known), middles, **style | {"marker": "none"})
        for (scale, probes), middle in zip(known.items(), middles, strict=True):
            is_bound = any(p.is_abandoned for p in probes)
            face = "none" if is_bound else style["color"]
            axis.plot(scale, middle, style["marker"], color=style["color"], markerfacecolor=face)
    axis.set(
        xlabel="scale of all TTFT objectives",
        ylabel=f"in time at {rate:.2f} requests/s",
        ylim=(0, 1.03),
    )


def _left_out(result: GoodputResult, shown: Sequence[SystemResult]) -> str:
    names = {system.name for system in shown}
    others = [name for name in result.systems if name not in names]
    return f" In the table only: {', '.join(others)}." if others else ""
