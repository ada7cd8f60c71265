"""The picture of a comparison: TTFT distribution of each class, and attainment as bars."""

import textwrap
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: machines that measure have no display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from bench.comparison.report import Comparison
from bench.replaying.metrics import rows_by_class
from bench.replaying.row import RequestRow

_COLOURS = mpl.color_sequences["tab10"]


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Write the picture as PNG."""
    by_system = {run.system: rows_by_class(run.rows) for run in comparison.runs}
    classes = list(next(iter(by_system.values())))
    figure, axes = plt.subplots(
        1, len(classes) + 1, figsize=(3.2 * (len(classes) + 1), 3.8), layout="constrained"
    )
    for axis, name in zip(axes[:-1], classes, strict=True):
        _draw_cdf(axis, name, {system: groups[name] for system, groups in by_system.items()})
    axes[0].set_ylabel("share of requests")
    _draw_attainment(axes[-1], comparison, classes)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(textwrap.fill(comparison.title, 110), fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_cdf(axis: Axes, name: str, rows_of: dict[str, list[RequestRow]]) -> None:
    for colour, (system, rows) in zip(_COLOURS, rows_of.items(), strict=False):
        ttfts_s = sorted(row.ttft_s for row in rows if row.ttft_s is not None)
        # From 0, so that a single request shows. Failed ones stay in the denominator: their
        # curve ends below 1.
        times_s = [*ttfts_s[:1], *ttfts_s]
        shares = [rank / len(rows) for rank in range(len(times_s))]
        axis.step(times_s, shares, where="post", color=colour, label=system)
    slo_s = next(iter(rows_of.values()))[0].slo_ttft_s
    axis.axvline(slo_s, color="black", linestyle="--", linewidth=1)
    num_requests = len(next(iter(rows_of.values())))
    axis.set(title=f"{name} (n={num_requests}, SLO {slo_s:g} s)", xlabel="TTFT s", xscale="log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(0, 1.02)
    axis.grid(alpha=0.3)


def _draw_attainment(axis: Axes, comparison: Comparison, classes: list[str]) -> None:
    summaries = comparison.summaries()
    width = 0.8 / len(summaries)
    for i, (system, summary) in enumerate(summaries.items()):
        shares = [summary.classes[name].attained for name in classes] + [summary.overall.attained]
        positions = [x + (i - (len(summaries) - 1) / 2) * width for x in range(len(shares))]
        bars = axis.bar(positions, shares, width, color=_COLOURS[i], label=system)
        axis.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize="x-small", rotation=90)
    axis.set_xticks(range(len(classes) + 1), [*classes, "all"])
    axis.set_ylim(0, 1.15)
    axis.set_title("met their TTFT SLO")
