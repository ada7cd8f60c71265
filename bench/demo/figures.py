"""The picture of the demo: what became of each request, system below system."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from bench.comparison.report import SystemRun
from bench.replaying.metrics import is_met
from bench.replaying.row import RequestRow
from bench.results.picture import INK, SERIES, Picture, canvas, save

_IN_TIME, _LATE = SERIES[2], SERIES[1]


def draw_requests(title: str, runs: Sequence[SystemRun], folder: Path) -> Picture:
    """Draw a line for each request, from its sending to its first token."""
    num_rows = len(runs[0].rows)
    end_s = max(_end_s(row) for run in runs for row in run.rows)
    with canvas((0.6 + 0.06 * num_rows) * len(runs) + 0.7, len(runs)) as (figure, axes):
        for axis, run in zip(axes, runs, strict=True):
            for row in run.rows:
                _draw_request(axis, row)
            axis.set_title(run.system, loc="left")
            axis.set(xlim=(-0.02 * end_s, end_s * 1.02), yticks=[], ylabel="requests")
            axis.invert_yaxis()
            axis.grid(visible=False, axis="y")
        axes[-1].set_xlabel("seconds; from sending to first token")
        axes[0].plot([], [], "-|", color=_IN_TIME, label="in time")
        axes[0].plot([], [], "-x", color=_LATE, label="late or failed")
        axes[0].plot([], [], ".", color=INK, markersize=2.5, label="its objective")
        figure.legend(loc="outside lower center", ncols=3)
        return save(
            figure,
            "requests",
            "What became of each request",
            "In order of arrival, the same requests for each system. A dot is the latest moment "
            "that would have been in time.",
            folder,
            measured=title,
        )


def _draw_request(axis: Axes, row: RequestRow) -> None:
    met = is_met(row)
    colour = _IN_TIME if met else _LATE
    axis.plot([row.sent_s, _end_s(row)], [row.index] * 2, color=colour, linewidth=1.3)
    axis.plot(_end_s(row), row.index, "|" if met else "x", color=colour, markersize=3)
    axis.plot(row.sent_s + row.slo_ttft_s, row.index, ".", color=INK, markersize=1.5)


def _end_s(row: RequestRow) -> float:
    return row.first_token_s or row.finished_s or row.sent_s
