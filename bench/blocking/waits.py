"""Waits for a running prefill, read from the server's timeline: pure functions on its slices.

Two answers to "how long does whoever should run now wait for the running prefill":

* *observed*: for each request that arrived during a prefill, the time from the last moment at which
  the scheduler saw nothing to the moment the prefill stopped. An upper bound, because the
  request came at an unknown moment in between. A prefill that ends instead of yielding counts.
* *uniform arrival*: what a request would wait that arrives at a uniformly random moment of an
  undisturbed prefill, computed exactly from the lengths of its operators: with many of them,
  far percentiles are known without many arrivals.

A request is likelier to fall into a long operator than into a short one, in both.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.replaying.metrics import percentile
from sglang_flowprefill.core import EventKind
from sglang_flowprefill.observe.timeline_reader import RecordedTimeline, RoundInstant, RunningSlice


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the server's life, in seconds of a clock shared with it."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s

    def holds(self, time_s: float) -> bool:
        """Tell whether the moment lies within."""
        return self.start_s <= time_s <= self.end_s


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that found a prefill running.

    Attributes:
        bound_s: Seconds that it has waited, at most, until the prefill stopped.
        from_send_s: Seconds from its HTTP request to that moment.
        end: How the prefill stopped: ``yield``, or it ended.
    """

    bound_s: float
    from_send_s: float
    end: str


@dataclass(frozen=True, slots=True)
class WaitSummary:
    """Distribution of waits in seconds; percentiles are nearest-rank where observed.

    Attributes:
        num_samples: Waits, or operators that the distribution is computed from.
        mean_s: Mean.
        p50_s: Median.
        p99_s: 99th percentile.
        max_s: The longest possible or observed.
    """

    num_samples: int
    mean_s: float
    p50_s: float
    p99_s: float
    max_s: float


def running_in(recorded: RecordedTimeline, window: Window) -> list[RunningSlice]:
    """Return the running slices that begin within.

    They may end later: the client has its token before the server has noted the end.
    """
    return [slice_ for slice_ in recorded.running if window.holds(slice_.start_s)]


def arrivals_in(
    recorded: RecordedTimeline, window: Window, flights: Sequence[Window]
) -> list[Arrival]:
    """List the requests that arrived while a prefill ran, by when that stopped.

    The round that first sees such a request follows the slice it came in, with no other between.

    Args:
        recorded: Of the server.
        window: In which one urgent request at a time was sent beside a long one.
        flights: Of the urgent requests, each from its send to its token; arrivals of others do
            not count.
    """
    found = []
    for slice_, round_ in _slices_before_rounds(recorded, window):
        if EventKind.ARRIVAL.value not in round_.events:
            continue
        bound_s = slice_.blocking_s
        if bound_s is None:  # it ended; nobody looked since its last boundary
            bound_s = slice_.end_s - slice_.operators[-1].start_s
        flight = next((flight for flight in flights if flight.holds(slice_.end_s)), None)
        if flight is not None:
            found.append(Arrival(bound_s, slice_.end_s - flight.start_s, slice_.end))
    return found


def _slices_before_rounds(
    recorded: RecordedTimeline, window: Window
) -> Iterator[tuple[RunningSlice, RoundInstant]]:
    """Pair each round with the running slice that ended since the round before, if one did."""
    ends = [(slice_.end_s, 0, slice_) for slice_ in running_in(recorded, window)]
    rounds = [(round_.time_s, 1, round_) for round_ in recorded.rounds]
    last: RunningSlice | None = None
    for _time_s, _kind, item in sorted(ends + rounds, key=lambda entry: entry[:2]):
        if isinstance(item, RunningSlice):
            last = item
        elif last is not None:
            yield last, item
            last = None


def summarise_waits(waits_s: Sequence[float]) -> WaitSummary | None:
    """Summarise observed waits; None without any."""
    if not waits_s:
        return None
    return WaitSummary(
        num_samples=len(waits_s),
        mean_s=fmean(waits_s),
        p50_s=percentile(waits_s, 0.50),
        p99_s=percentile(waits_s, 0.99),
        max_s=max(waits_s),
    )


def uniform_arrival(durations_s: Iterable[float]) -> WaitSummary | None:
    """Return the wait of an arrival at a uniformly random moment; None without any duration.

    Args:
        durations_s: Of the stretches without a boundary, which follow one another.
    """
    longest_first = sorted((d for d in durations_s if d > 0), reverse=True)
    if not longest_first:
        return None
    total_s = math.fsum(longest_first)
    return WaitSummary(
        num_samples=len(longest_first),
        mean_s=math.fsum(d * d for d in longest_first) / (2 * total_s),
        p50_s=_residual_quantile_s(longest_first, total_s, 0.50),
        p99_s=_residual_quantile_s(longest_first, total_s, 0.99),
        max_s=longest_first[0],
    )


def _residual_quantile_s(longest_first: Sequence[float], total_s: float, fraction: float) -> float:
    """Solve ``sum(max(0, d - w)) = (1 - fraction) * sum(d)`` for the wait ``w``.

    The left side over the total is the share of moments from which the wait exceeds ``w``.
    """
    beyond_s = (1 - fraction) * total_s
    sum_s = 0.0
    wait_s = 0.0
    for count, duration_s in enumerate(longest_first, start=1):
        if wait_s >= duration_s:
            break
        sum_s += duration_s
        wait_s = (sum_s - beyond_s) / count
    return max(wait_s, 0.0)


def operator_durations_s(slices: Iterable[RunningSlice]) -> list[float]:
    """Return the stretches between boundaries of undisturbed slices."""
    return [operator.end_s - operator.start_s for slice_ in slices for operator in slice_.operators]
