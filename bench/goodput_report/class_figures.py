"""Pictures of what each class gets; None is returned where data for one lack."""

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from bench.errors import UsageError
from bench.goodput.result import GoodputResult, Probe
from bench.goodput_report.options import ReportOptions
from bench.goodput_report.selection import (
    class_shares,
    common_rate,
    drawn_systems,
    probes_at_maximum,
    reference_scale,
    whole_probes_at,
)
from bench.replaying.metrics import rows_by_class
from bench.results.picture import GRID, INK, Picture, SeriesStyles, canvas, save


def draw_ttft(result: GoodputResult, options: ReportOptions, folder: Path) -> Picture | None:
    """Draw the distribution of TTFT of every class at one rate, all seeds together.

    Raises:
        UsageError: A rate is asked for that nothing was measured at.
    """
    scale = reference_scale(result)
    rate = options.cdf_rate_per_s or common_rate(
        list(result.systems.values()), [scale], whole_only=True
    )
    systems = drawn_systems(result, options)
    probes = {} if rate is None else {s.name: whole_probes_at(s, scale, rate) for s in systems}
    probes = {name: found for name, found in probes.items() if found}
    if options.cdf_rate_per_s is not None and not probes:
        rates = sorted({p.rate_per_s for s in systems for p in s.probes if not p.is_abandoned})
        raise UsageError(
            f"no system has a whole replay at {options.cdf_rate_per_s:g} requests/s; there are "
            + ", ".join(f"{rate:.2f}" for rate in rates)
        )
    if rate is None or not probes:
        return None
    styles = SeriesStyles([system.name for system in systems])
    classes = list(result.class_slos_s)
    num_rows = -(-len(classes) // 2)
    with canvas(0.7 + 2.1 * num_rows, num_rows, min(2, len(classes))) as (figure, axes):
        for axis, name in zip(axes, classes, strict=False):
            _draw_class(axis, name, probes, styles)
            slo_s = result.class_slos_s[name] * scale
            axis.axvline(slo_s, color=INK, linestyle="--", linewidth=1)
            axis.set_title(f"{name}: within {slo_s:g} s")
        for axis in axes[len(classes) :]:
            axis.set_axis_off()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        missing = [s.name for s in result.systems.values() if s.name not in probes]
        lacking = f" No whole replay at this rate: {', '.join(missing)}." if missing else ""
        return save(
            figure,
            "ttft",
            f"Time to first token at {rate:.2f} requests/s",
            "Share of requests answered within the time (s), by class, all seeds together; dashed: "
            f"the objective. A curve that ends below 100 % had failures.{lacking}",
            folder,
            measured=result.title,
        )


def _draw_class(
    axis: Axes, name: str, probes: dict[str, list[Probe]], styles: SeriesStyles
) -> None:
    for system, found in probes.items():
        rows = [r for p in found for r in rows_by_class(p.rows).get(name, [])]
        times_s = sorted(r.ttft_s for r in rows if r.ttft_s is not None)
        if not times_s:
            continue
        shares = [rank / len(rows) for rank in range(len(times_s) + 1)]
        style = styles.line(system) | {"marker": "none"}
        axis.step([times_s[0], *times_s], shares, where="post", **style)
    axis.set(xscale="log", ylim=(0, 1.03))
    axis.xaxis.set_major_locator(LogLocator(numticks=5))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def draw_classes(result: GoodputResult, options: ReportOptions, folder: Path) -> Picture | None:
    """Draw each class's share in time at each system's own highest passing rate."""
    scale = reference_scale(result)
    best = {
        s.name: class_shares(probes_at_maximum(s, scale, options.goal))
        for s in drawn_systems(result, options)
    }
    systems = [s for s in drawn_systems(result, options) if best[s.name]]
    if not systems:
        return None
    styles = SeriesStyles([system.name for system in drawn_systems(result, options)])
    classes = list(result.class_slos_s)
    with canvas(1.1 + 0.62 * len(classes)) as (figure, (axis,)):
        height = 0.8 / len(systems)
        for i, system in enumerate(systems):
            shares = best[system.name]
            style = styles.line(system.name)
            for place, name in enumerate(classes):
                values = shares.get(name)
                if values:
                    where = place + (i - (len(systems) - 1) / 2) * height
                    axis.plot([min(values), max(values)], [where] * 2, color=style["color"])
                    axis.plot(median(values), where, style["marker"], color=style["color"])
            axis.plot([], [], style["marker"], color=style["color"], label=system.name)
        axis.axvline(options.goal, color=INK, linewidth=0.9, linestyle=":")
        for place in range(1, len(classes)):
            axis.axhline(place - 0.5, color=GRID, linewidth=0.8)
        axis.set_yticks(range(len(classes)), classes)
        axis.grid(visible=False, axis="y")
        axis.invert_yaxis()
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        figure.legend(loc="outside lower center", ncols=2)
        return save(
            figure,
            "classes",
            "Who is in time at each system's own max goodput",
            f"Median and range over seeds, each system at its own highest passing rate. Dotted: "
            f"{options.goal:.0%}, which all classes together reach there.",
            folder,
            measured=result.title,
        )
