"""The cost of a suspension is what is left when all work is taken away."""

import pytest
from timelines import round_at, running, timeline_of

from bench.blocking.switching import LongPrefill, handled_s, long_prefill_in, switch_cost
from bench.blocking.waits import Window

ALL = Window(0.0, 1000.0)


def test_long_prefill_is_followed_through_its_suspensions():
    """Only suspensions in which others ran count; an own pause is part of the span."""
    recorded = timeline_of(
        [
            running(7, 10.0, 2.0),
            running(8, 12.25, 0.5, end="finished"),
            running(7, 13.0, 1.0),
            running(7, 14.25, 1.0),
            running(9, 15.5, 0.5, end="finished"),
            running(7, 16.5, 3.0, end="finished"),
        ]
    )
    long = long_prefill_in(recorded, ALL)
    assert long == LongPrefill(run_s=7.0, span_s=9.5, away_s=[1.0, 1.25])
    assert long_prefill_in(recorded, Window(0.0, 1.0)) is None


def test_handling_lasts_from_the_round_of_arrival_to_that_of_completion():
    """Batch, forward pass and result of a request that is alone."""
    recorded = timeline_of(
        rounds=[
            round_at(1.0, "arrival"),
            round_at(1.5, "completion"),
            round_at(2.0, "control"),
            round_at(3.0, "completion"),
            round_at(4.0, "arrival"),
            round_at(4.25, "completion"),
        ]
    )
    assert handled_s(recorded, ALL) == [0.5, 0.25]
    assert handled_s(recorded, Window(3.5, 9.0)) == [0.25]


def test_switch_cost_is_lateness_beyond_all_work():
    """Two suspensions make the end 2.5 s later, of which 2 s is work of the others."""
    alone = [LongPrefill(10.0, 10.0, [])] * 3
    suspended = [LongPrefill(10.2, 12.5, [1.1, 1.2])]
    cost = switch_cost(alone, suspended, [1.0, 1.0, 1.0])
    assert cost.num_suspensions == 2
    assert cost.away_p50_s == pytest.approx(1.15)
    assert cost.handled_p50_s == 1.0
    assert cost.slower_s == pytest.approx(0.1)
    assert cost.extra_s == pytest.approx(0.25)


def test_no_suspension_has_no_cost():
    """A server that never suspends has none to divide by."""
    assert switch_cost([LongPrefill(1.0, 1.0, [])], [LongPrefill(1.0, 1.0, [])], [0.1]) is None
