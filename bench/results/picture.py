"""A picture in two forms: PNG for elsewhere, SVG that lives in the page and takes its colours.

Inside the page ink, grid and series are CSS variables, so that one picture serves light and dark.
Series differ in marker and line style as well as colour, and the colours are Okabe and Ito's, for
those who do not see all of them.
"""

import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: machines that measure have no display

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

INK = "#1b2631"
GRID = "#c3c9cf"
SERIES = ("#0072b2", "#d55e00", "#00795a", "#a8457f", "#8a6d00", "#4a86c5", "#5f6b76")
MARKERS = ("o", "s", "D", "^", "P", "X", "v")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), "-.", (0, (3, 1, 1, 1, 1, 1)), "--", ":")

# A phone shows it at about this size, so that text of this many points is readable there.
WIDTH_INCHES = 5.0
_POINTS = 8.5
_TITLE_WIDTH = 78  # characters

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flowprefill",  # the same ids in every run
    "font.family": "sans-serif",
    "font.size": _POINTS,
    "axes.titlesize": _POINTS + 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": _POINTS - 0.5,
    "lines.markersize": 4.5,
    "lines.linewidth": 1.4,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture.

    Attributes:
        name: Of its file, without suffix, and its anchor in the page.
        title: What it shows.
        caption: How to read it.
        svg: To put into a page.
    """

    name: str
    title: str
    caption: str
    svg: str


@contextmanager
def canvas(
    height_inches: float, num_rows: int = 1, num_columns: int = 1
) -> Iterator[tuple[Figure, list[plt.Axes]]]:
    """Give a figure of the page's width and its axes, row by row; close it at the end."""
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(
            num_rows,
            num_columns,
            figsize=(WIDTH_INCHES, height_inches),
            layout="constrained",
            squeeze=False,
        )
        try:
            yield figure, list(axes.flat)
        finally:
            plt.close(figure)


def save(
    figure: Figure, name: str, title: str, caption: str, folder: Path, *, measured: str = ""
) -> Picture:
    """Write the PNG into a folder and return the picture for the page.

    Args:
        figure: Drawn on a ``canvas``.
        name: As in ``Picture``.
        title: As in ``Picture``; stands above the PNG, which has no page around it.
        caption: As in ``Picture``.
        folder: For the PNG.
        measured: What was measured, how it was scaled and on what: a line more above the PNG.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    lines = [textwrap.fill(text, _TITLE_WIDTH) for text in (title, measured) if text]
    figure.suptitle("\n".join(lines), fontsize=_POINTS)
    figure.savefig(folder / f"{name}.png", dpi=200, facecolor="white")
    return Picture(name, title, caption, _for_page(buffer.getvalue(), name, title))


def _for_page(svg: str, name: str, title: str) -> str:
    """Take the XML head away, colours to variables, ids apart from other pictures' of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id=")|(url\(#)|(href="#)', lambda m: m.group(0) + name + "-", svg)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    svg = f'{head} role="img" aria-label="{label}">{rest}'
    for colour, variable in _variables().items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def _variables() -> dict[str, str]:
    series = {colour: f"series-{i}" for i, colour in enumerate(SERIES)}
    return {INK: "ink", GRID: "grid", **series}


class SeriesStyles:
    """Hands out styles to names, in order, the same style for the same name each time."""

    def __init__(self, names: list[str]) -> None:
        self._index = {name: i for i, name in enumerate(names)}

    def colour(self, name: str) -> str:
        """Return the colour."""
        return SERIES[self._index[name] % len(SERIES)]

    def line(self, name: str) -> dict[str, Any]:
        """Return arguments of ``plot``."""
        i = self._index[name] % len(SERIES)
        return {"color": SERIES[i], "marker": MARKERS[i], "linestyle": DASHES[i], "label": name}
