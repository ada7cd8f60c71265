"""The picture of a load sweep: attainment by class, and goodput against what is offered."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: machines that measure have no display

from matplotlib import pyplot as plt

from bench.load.points import LoadLevel

_ATTAINMENT_GOAL = 0.9


def draw_load(title: str, levels: Sequence[LoadLevel], path: Path) -> None:
    """Write the picture as PNG."""
    figure, (shares, goodput) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    loads = [level.load for level in levels]
    for name in levels[0].class_attained:
        known = [level for level in levels if name in level.class_attained]
        attained = [level.class_attained[name] for level in known]
        shares.plot([level.load for level in known], attained, "o-", label=name)
    lows, highs = zip(*(level.attained_range for level in levels), strict=True)
    shares.fill_between(loads, lows, highs, color="grey", alpha=0.2, label="all, range of seeds")
    shares.plot(loads, [level.attained for level in levels], "k--", label="all")
    shares.axhline(_ATTAINMENT_GOAL, color="grey", linewidth=1)
    shares.set(xlabel="load, share of capacity", title="met their TTFT SLO", ylim=(0, 1.02))
    shares.legend(frameon=False, fontsize="small")
    offered = [level.rate_per_s for level in levels]
    goodput.plot(offered, offered, color="grey", linestyle=":", label="offered")
    goodput.plot(offered, [level.goodput_per_s for level in levels], "o-", label="goodput")
    goodput.set(xlabel="offered requests/s", title="requests/s that met their TTFT SLO")
    goodput.set_ylim(bottom=0)
    goodput.legend(frameon=False, fontsize="small")
    figure.suptitle(textwrap.fill(title, 110), fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
