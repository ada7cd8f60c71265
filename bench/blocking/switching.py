"""What a suspension costs, read from the server's timeline: pure functions on recorded slices."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from bench.blocking.waits import Window, running_in
from sglang_flowprefill.core import EventKind
from sglang_flowprefill.observe.timeline_reader import RecordedTimeline


@dataclass(frozen=True, slots=True)
class LongPrefill:
    """One long prefill and what came in between.

    Attributes:
        run_s: Its running time, suspensions left out.
        span_s: From its first start to its end.
        away_s: Each time that others ran in between, from its yield to its resume.
    """

    run_s: float
    span_s: float
    away_s: list[float]


def long_prefill_in(recorded: RecordedTimeline, window: Window) -> LongPrefill | None:
    """Follow the prefill that ran longest in this window; None if none ran."""
    slices = sorted(running_in(recorded, window), key=lambda s: s.start_s)
    if not slices:
        return None
    run_s: dict[int, float] = defaultdict(float)
    for slice_ in slices:
        run_s[slice_.batch_id] += slice_.end_s - slice_.start_s
    long_id = max(run_s, key=lambda batch_id: run_s[batch_id])
    own = [(i, slice_) for i, slice_ in enumerate(slices) if slice_.batch_id == long_id]
    return LongPrefill(
        run_s=run_s[long_id],
        span_s=own[-1][1].end_s - own[0][1].start_s,
        away_s=[
            after.start_s - before.end_s
            for (i, before), (j, after) in pairwise(own)
            if j > i + 1  # others ran
        ],
    )


def handled_s(recorded: RecordedTimeline, window: Window) -> list[float]:
    """Return, for each request served alone, the time between the rounds that saw it come and go.

    It is what the scheduler spends on such a request if nobody has to be suspended for it.
    """
    found = []
    arrival_s: float | None = None
    for round_ in recorded.rounds:
        if EventKind.ARRIVAL.value in round_.events:
            arrival_s = round_.time_s if window.holds(round_.time_s) else None
        elif EventKind.COMPLETION.value in round_.events and arrival_s is not None:
            found.append(round_.time_s - arrival_s)
            arrival_s = None
    return found


@dataclass(frozen=True, slots=True)
class SwitchCost:
    """What one suspension costs beyond the work done in between.

    Attributes:
        num_suspensions: How many were looked at.
        away_p50_s: Median time from the yield to the resume.
        handled_p50_s: Median time that the same request takes on the idle server.
        slower_s: Time that the long prefill itself ran longer, for each suspension (cold caches).
        extra_s: Time by which its end was later than by its own work and that of the others, for
            each suspension: the switch cost.
    """

    num_suspensions: int
    away_p50_s: float
    handled_p50_s: float
    slower_s: float
    extra_s: float


def switch_cost(
    alone: Sequence[LongPrefill], suspended: Sequence[LongPrefill], idle_s: Sequence[float]
) -> SwitchCost | None:
    """Compare long prefills that were suspended with the same ones alone.

    Args:
        alone: Undisturbed, at least one.
        suspended: With short requests in between.
        idle_s: ``handled_s`` of such short requests on the idle server, at least one.

    Returns:
        None where nothing was suspended.
    """
    away_s = [seconds for long in suspended for seconds in long.away_s]
    if not away_s or not alone or not idle_s:
        return None
    handled_p50_s = median(idle_s)
    count = len(away_s)
    alone_run_s = median(long.run_s for long in alone)
    alone_span_s = median(long.span_s for long in alone)
    late_s = math.fsum(long.span_s - alone_span_s for long in suspended) - count * handled_p50_s
    return SwitchCost(
        num_suspensions=count,
        away_p50_s=median(away_s),
        handled_p50_s=handled_p50_s,
        slower_s=math.fsum(long.run_s - alone_run_s for long in suspended) / count,
        extra_s=late_s / count,
    )
