"""The picture of one burst, from the timeline file of a FlowPrefill server."""

import re
from collections.abc import Sequence
from pathlib import Path

from bench.errors import UsageError
from bench.results.picture import SERIES, Picture, canvas, save
from sglang_flowprefill.observe.timeline_reader import RecordedTimeline, RunningSlice, read_timeline

_MAX_PREFILLS = 30
_CLASS = re.compile(r"\(([^()]*)\)$")  # at the end of a label


def draw_burst(path: Path, folder: Path) -> Picture:
    """Draw the prefill that was suspended most often, and all that ran in front of it.

    Raises:
        UsageError: The file is no timeline, or nothing was suspended in it.
    """
    try:
        recorded = read_timeline(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a timeline of a FlowPrefill server: {error}") from error
    slices = burst_of(recorded)
    if not slices:
        raise UsageError(f"{path}: no prefill was suspended, so there is no burst to show")
    lanes = {batch: lane for lane, batch in enumerate(dict.fromkeys(s.batch_id for s in slices))}
    classes = list(dict.fromkeys(class_of(s) for s in slices))
    start_s = slices[0].start_s
    with canvas(1.2 + 0.13 * len(lanes)) as (figure, (axis,)):
        for piece in slices:
            colour = SERIES[classes.index(class_of(piece)) % len(SERIES)]
            duration_s = piece.end_s - piece.start_s
            axis.barh(lanes[piece.batch_id], duration_s, 0.8, piece.start_s - start_s, color=colour)
        for i, name in enumerate(classes):
            axis.barh(0, 0, color=SERIES[i % len(SERIES)], label=name)
        axis.set(xlabel="seconds", ylabel="prefills, by first start", yticks=[])
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        figure.legend(loc="outside lower center", ncols=4)
        return save(
            figure,
            "burst",
            "One burst, as the server ran it",
            f"Each row is a prefill, each bar a stretch that it ran. The first one was suspended "
            f"{_num_yields(slices)} times for others, and went on where it stood.",
            folder,
        )


def burst_of(recorded: RecordedTimeline) -> list[RunningSlice]:
    """Return what ran during the life of the prefill that yielded most, by start.

    It begins with that prefill; at most ``_MAX_PREFILLS`` prefills are kept. Empty if none yielded.
    """
    by_batch: dict[int, list[RunningSlice]] = {}
    for piece in recorded.running:
        by_batch.setdefault(piece.batch_id, []).append(piece)
    if not by_batch:
        return []
    most = max(by_batch.values(), key=_num_yields)
    if not _num_yields(most):
        return []
    start_s, end_s = most[0].start_s, most[-1].end_s
    during = [s for s in recorded.running if start_s <= s.start_s <= end_s]
    during.sort(key=lambda s: s.start_s)
    kept = set(list(dict.fromkeys(s.batch_id for s in during))[:_MAX_PREFILLS])
    return [s for s in during if s.batch_id in kept]


def class_of(piece: RunningSlice) -> str:
    """Return the class that stands at the end of a label.

    >>> _CLASS.search("r1 and 3 more (text)").group(1)
    'text'
    """
    found = _CLASS.search(piece.label)
    return found.group(1) if found else "other"


def _num_yields(slices: Sequence[RunningSlice]) -> int:
    """Count the yields of the first prefill among these."""
    return sum(s.end == "yield" and s.batch_id == slices[0].batch_id for s in slices)
