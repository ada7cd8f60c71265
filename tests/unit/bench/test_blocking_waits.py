"""What an urgent request waited is read from the timeline without flattering anybody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timelines import round_at, running, timeline_of

from bench.blocking.waits import (
    Window,
    arrivals_in,
    operator_durations_s,
    summarise_waits,
    uniform_arrival,
)

ALL = Window(0.0, 1000.0)
ALWAYS = [ALL]


def test_wait_of_an_arrival_ends_with_the_yield():
    """The bound is the server's; the way from the client is counted from its send."""
    recorded = timeline_of(
        [running(0, 10.0, 1.0, 0.5, blocking_s=0.4)], [round_at(11.51, "arrival")]
    )
    (arrival,) = arrivals_in(recorded, ALL, [Window(3.0, 4.0), Window(11.25, 11.75)])
    assert arrival.bound_s == 0.4
    assert arrival.from_send_s == pytest.approx(0.25)
    assert arrival.end == "yield"


def test_arrival_that_waits_for_the_end_of_the_prefill_counts():
    """A prefill that ends instead of yielding has kept the request waiting all the same."""
    recorded = timeline_of(
        [running(0, 10.0, 2.0, 0.5, end="finished")], [round_at(12.6, "arrival", "completion")]
    )
    (arrival,) = arrivals_in(recorded, ALL, [Window(11.5, 13.0)])
    assert arrival.bound_s == pytest.approx(0.5), "nobody looked since the last boundary"
    assert (arrival.end, arrival.from_send_s) == ("finished", 1.0)


def test_arrival_that_finds_nothing_running_does_not_count():
    """A round in between has seen the end of the prefill before the request came."""
    recorded = timeline_of(
        [running(0, 10.0, 2.0, end="finished")],
        [round_at(12.1, "completion"), round_at(13.0, "arrival")],
    )
    assert arrivals_in(recorded, ALL, ALWAYS) == []


def test_yield_for_something_else_does_not_count():
    """Decode steps and aborts interrupt too."""
    recorded = timeline_of([running(0, 10.0, 2.0, blocking_s=0.1)], [round_at(12.1, "timer")])
    assert arrivals_in(recorded, ALL, ALWAYS) == []


def test_arrival_of_the_next_long_prompt_does_not_count():
    """Sent as soon as the one before was answered, it may come before that one's last round."""
    recorded = timeline_of(
        [running(0, 10.0, 2.0, end="finished")], [round_at(12.1, "completion", "arrival")]
    )
    assert arrivals_in(recorded, ALL, [Window(10.5, 11.0)]) == []


def test_only_the_window_counts():
    """Other lengths were measured before and after."""
    slices = [running(i, 10.0 * i, 1.0, blocking_s=float(i)) for i in (1, 2, 3)]
    rounds = [round_at(10.0 * i + 1.5, "arrival") for i in (1, 2, 3)]
    recorded = timeline_of(slices, rounds)
    assert [a.bound_s for a in arrivals_in(recorded, Window(19.0, 20.5), ALWAYS)] == [2.0]


def test_uniform_arrival_of_equal_operators():
    """With operators of 10 ms the wait is uniform from 0 to 10 ms."""
    summary = uniform_arrival([0.010] * 500)
    assert summary.p50_s == pytest.approx(0.005)
    assert summary.p99_s == pytest.approx(0.0099)
    assert summary.mean_s == pytest.approx(0.005)
    assert (summary.max_s, summary.num_samples) == (0.010, 500)


def test_uniform_arrival_hits_long_operators_more_often():
    """One operator of 90 ms among ninety of 1 ms takes half of all arrivals."""
    summary = uniform_arrival([0.090] + [0.001] * 90)
    assert summary.p50_s == pytest.approx(0.001, abs=0.0005)
    assert summary.p99_s == pytest.approx(0.090 - 0.01 * 0.180)
    assert summary.mean_s == pytest.approx((0.09**2 + 90 * 0.001**2) / (2 * 0.18))


@given(st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=30))
def test_uniform_arrival_leaves_the_right_share_beyond(durations_s):
    """Exactly half of all moments lie further than the median from the next boundary."""
    summary = uniform_arrival(durations_s)
    total_s = sum(durations_s)
    for quantile_s, share in ((summary.p50_s, 0.50), (summary.p99_s, 0.01)):
        beyond_s = sum(max(0.0, d - quantile_s) for d in durations_s)
        assert beyond_s == pytest.approx(share * total_s, rel=1e-6)
    assert summary.p50_s <= summary.p99_s <= summary.max_s


def test_nothing_measured_is_not_zero():
    """Without arrivals or operators there is no summary."""
    assert summarise_waits([]) is None
    assert uniform_arrival([]) is None
    assert uniform_arrival([0.0]) is None


def test_observed_waits_are_summarised_by_nearest_rank():
    """Every percentile is a wait that somebody had."""
    summary = summarise_waits([0.001 * i for i in range(1, 101)])
    assert (summary.p50_s, summary.p99_s, summary.max_s) == (0.050, 0.099, 0.1)
    assert summary.mean_s == pytest.approx(0.0505)


def test_operator_durations_are_those_of_all_slices():
    """Chunks and slices are put one after the other."""
    slices = [running(0, 0.0, 1.0, 2.0), running(0, 10.0, 4.0)]
    assert operator_durations_s(slices) == [1.0, 2.0, 4.0]
