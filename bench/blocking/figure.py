"""The picture of blocking: wait by length of the running prompt, one colour per granularity."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: machines that measure have no display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from bench.blocking.waits import WaitSummary

_COLOURS = mpl.color_sequences["tab10"]


def draw_blocking(
    title: str,
    observed: Mapping[str, Mapping[int, WaitSummary | None]],
    uniform: Mapping[str, Mapping[int, WaitSummary | None]],
    path: Path,
) -> None:
    """Write the picture as PNG.

    Args:
        title: What was measured.
        observed: Upper bounds that arrivals waited, by granularity and length.
        uniform: Waits of a uniformly random arrival, likewise.
        path: File to write.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
    axes[0].set(title="observed, upper bound", ylabel="blocking ms")
    axes[1].set(title="uniformly random arrival, computed")
    lengths = sorted({n for by_length in observed.values() for n in by_length})
    for axis, waits in zip(axes, (observed, uniform), strict=True):
        for colour, (granularity, by_length) in zip(_COLOURS, waits.items(), strict=False):
            _draw(axis, granularity, by_length, colour)
        _label(axis, lengths)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(textwrap.fill(title, 110), fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw(
    axis: Axes,
    granularity: str,
    by_length: Mapping[int, WaitSummary | None],
    colour: tuple[float, float, float],
) -> None:
    known = [(n, summary) for n, summary in sorted(by_length.items()) if summary is not None]
    lengths = [n for n, _ in known]
    for name, style, values_s in (
        ("p99", "o-", [summary.p99_s for _, summary in known]),
        ("p50", "o:", [summary.p50_s for _, summary in known]),
    ):
        values_ms = [seconds * 1000 for seconds in values_s]
        axis.plot(lengths, values_ms, style, color=colour, label=f"{granularity} {name}")


def _label(axis: Axes, lengths: Sequence[int]) -> None:
    axis.set(xlabel="tokens of the running prompt", xscale="log", yscale="log")
    axis.set_xticks(lengths, [str(n) for n in lengths])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)
