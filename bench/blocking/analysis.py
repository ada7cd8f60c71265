"""From what was sent, and the server's timeline, to the result of one granularity."""

from dataclasses import dataclass
from typing import TypeVar

from bench.blocking.sending import GranularityRun, LengthRun
from bench.blocking.switching import SwitchCost, handled_s, long_prefill_in, switch_cost
from bench.blocking.waits import (
    Arrival,
    WaitSummary,
    arrivals_in,
    operator_durations_s,
    running_in,
    summarise_waits,
    uniform_arrival,
)
from bench.errors import BenchError
from sglang_flowprefill.observe.timeline_reader import RecordedTimeline

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class LengthResult:
    """Blocking by a prompt of one length.

    Attributes:
        num_tokens: The length.
        solo_ttfts_s: TTFTs of the long prompt alone.
        num_sent: Urgent prompts; those that came when nothing ran waited for nothing.
        observed: Upper bound of what those waited that found it running.
        from_send: The same from their HTTP request on: with the way through HTTP server and
            tokenizer.
        uniform: What an arrival at a uniformly random moment would wait.
        arrivals: Raw values of ``observed`` and ``from_send``.
    """

    num_tokens: int
    solo_ttfts_s: list[float]
    num_sent: int
    observed: WaitSummary | None
    from_send: WaitSummary | None
    uniform: WaitSummary | None
    arrivals: list[Arrival]


@dataclass(frozen=True, slots=True)
class GranularityResult:
    """One granularity's answer."""

    lengths: list[LengthResult]
    switch: SwitchCost | None


def analyse(run: GranularityRun, recorded: RecordedTimeline) -> GranularityResult:
    """Find in the timeline what happened when.

    Raises:
        BenchError: The timeline does not show a prompt that was sent.
    """
    alone = [_required(long_prefill_in(recorded, window)) for window in run.switch_solo]
    switched = [_required(long_prefill_in(recorded, window)) for window in run.switched]
    return GranularityResult(
        lengths=[_analyse_length(length, recorded) for length in run.lengths],
        switch=switch_cost(alone, switched, handled_s(recorded, run.idle)),
    )


def _analyse_length(run: LengthRun, recorded: RecordedTimeline) -> LengthResult:
    arrivals = arrivals_in(recorded, run.disturbed, run.flights)
    alone = [slice_ for window in run.solo for slice_ in running_in(recorded, window)]
    return LengthResult(
        num_tokens=run.num_tokens,
        solo_ttfts_s=[flight.duration_s for flight in run.solo],
        num_sent=len(run.flights),
        observed=summarise_waits([arrival.bound_s for arrival in arrivals]),
        from_send=summarise_waits([arrival.from_send_s for arrival in arrivals]),
        uniform=_required(uniform_arrival(operator_durations_s(alone))),
        arrivals=arrivals,
    )


def _required(found: Found | None) -> Found:
    if found is None:
        raise BenchError(
            "the timeline lacks prompts that were sent: the server's clock is not this process's"
        )
    return found
