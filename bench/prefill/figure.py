"""The picture of ``prefill``: times by case, and how they compare with the first system's."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: machines that measure have no display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from bench.prefill.options import PrefillCase
from bench.results.paired import PairedSummary, Spread

_COLOURS = mpl.color_sequences["tab10"]
_LABEL_WIDTH = 12


def draw_prefill(
    title: str,
    systems: Sequence[str],
    summaries: Sequence[PairedSummary[PrefillCase]],
    path: Path,
) -> None:
    """Write the picture as PNG: medians over rounds, with bars from the least to the most."""
    cases = list(dict.fromkeys(summary.case for summary in summaries))
    width = 2.4 + 0.55 * len(cases)
    figure, axes = plt.subplots(1, 2, figsize=(2 * width, 4.6), layout="constrained")
    for colour, system in zip(_COLOURS, systems, strict=False):
        own = [summary for summary in summaries if summary.system == system]
        times = [(cases.index(s.case), s.seconds) for s in own]
        ratios = [(cases.index(s.case), s.ratio) for s in own if s.ratio is not None]
        _draw(axes[0], system, times, colour)
        _draw(axes[1], system, ratios, colour)
    axes[0].set(title="time to first token", ylabel="s")
    axes[1].set(title=f"over {systems[0]}'s of the same round", ylabel="ratio")
    for axis in axes:
        _label(axis, cases)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(textwrap.fill(title, 110), fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw(
    axis: Axes, system: str, spreads: Sequence[tuple[int, Spread]], colour: tuple[float, ...]
) -> None:
    places = [place for place, _ in spreads]
    middles = [s.median for _, s in spreads]
    below = [s.median - s.least for _, s in spreads]
    above = [s.most - s.median for _, s in spreads]
    axis.errorbar(
        places,
        middles,
        (below, above),
        fmt="o",
        color=colour,
        label=system,
        markersize=4,
        capsize=3,
    )


def _label(axis: Axes, cases: Sequence[PrefillCase]) -> None:
    labels = [textwrap.fill(case.label, _LABEL_WIDTH) for case in cases]
    axis.set_xticks(range(len(cases)), labels, fontsize="x-small")
    axis.set(xlabel="prompt tokens", yscale="log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)
