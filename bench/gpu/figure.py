"""The picture of ``bench gpu``: waits by prompt length, and what each cut costs."""

import textwrap
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: machines that measure have no display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from bench.gpu.result import LengthResult

_COLOURS = mpl.color_sequences["tab20"]


def draw_gpu(title: str, lengths: list[LengthResult], path: Path) -> None:
    """Write the picture as PNG."""
    lengths = sorted(lengths, key=lambda length: length.num_tokens)
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.6), layout="constrained")
    for colour, name in zip(_COLOURS, lengths[0].cuts, strict=False):
        num_tokens = [length.num_tokens for length in lengths]
        waits = [length.cuts[name].waits for length in lengths]
        curves = (
            [wait.p50_s * 1e3 for wait in waits],
            [wait.p99_s * 1e3 for wait in waits],
            [length.tax(name) * 100 for length in lengths],
        )
        for axis, values in zip(axes, curves, strict=True):
            axis.plot(num_tokens, values, "o-", color=colour, label=name)
    axes[0].set(title="wait of an arrival, p50", ylabel="ms", yscale="log")
    axes[1].set(title="wait of an arrival, p99", ylabel="ms", yscale="log")
    axes[2].set(title="time of an undisturbed pass over uncut", ylabel="%")
    for axis in axes:
        _label(axis, [length.num_tokens for length in lengths])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(textwrap.fill(title, 130), fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _label(axis: Axes, num_tokens: list[int]) -> None:
    axis.set(xlabel="tokens of the running prompt", xscale="log")
    axis.set_xticks(num_tokens, [str(n) for n in num_tokens])
    axis.xaxis.set_minor_formatter(NullFormatter())
    if axis.get_yscale() == "log":
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)
