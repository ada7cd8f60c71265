"""Who may ride along with the head. One token takes one millisecond here."""

import pytest

from sglang_flowprefill.core.batching import BatchLimits, Passengers, select_batch
from sglang_flowprefill.core.predictor import PrefillCost
from sglang_flowprefill.testing import MS_PER_TOKEN, make_request


def members(head, *others, now_s=0.0, max_tokens=1000, reserve_fraction=0.1, cost=MS_PER_TOKEN):
    """Return the ids of the chosen batch."""
    limits = BatchLimits(max_tokens, reserve_fraction)
    passengers = Passengers.in_order(others, max_tokens)
    return [r.request_id for r in select_batch(head, passengers, now_s, cost, limits)]


def request(request_id, num_tokens, **kwargs):
    """Return a request of so many tokens, due in one second."""
    return make_request(request_id, num_uncached_tokens=num_tokens, **kwargs)


def test_head_takes_passengers_in_the_given_order():
    """Everything that fits rides along, head first."""
    assert members(request("head", 100), request("a", 200), request("b", 50)) == ["head", "a", "b"]


def test_passenger_that_exceeds_the_token_bound_is_skipped():
    """A later, smaller one may still ride."""
    head = request("head", 100)
    assert members(head, request("big", 301), request("fits", 300), max_tokens=400) == [
        "head",
        "fits",
    ]


def test_first_passenger_that_costs_the_reserve_ends_the_batch():
    """Nobody behind it rides, however small: the order is the policy's."""
    head = request("head", 400)
    costly, small = request("costly", 501), request("small", 10)
    assert members(head, costly, small) == ["head"]
    assert members(head, small, costly) == ["head", "small"]


def test_reserve_may_be_met_exactly():
    """The head keeps at least the reserve, not more than it."""
    head = request("head", 400, ttft_slo_s=1.0)
    fits = request("fits", 350)  # 0.75 s of a 1 s objective with a quarter in reserve
    assert members(head, fits, reserve_fraction=0.25) == ["head", "fits"]
    assert members(head, fits, reserve_fraction=0.25, now_s=0.001) == ["head"]


@pytest.mark.parametrize("num_tokens", [1000, 1001])
def test_head_as_long_as_the_bound_runs_alone(num_tokens):
    """A head that saturates the machine gains nothing from passengers."""
    head = request("head", num_tokens, ttft_slo_s=60.0)
    assert members(head, request("tiny", 0), request("small", 1)) == ["head"]


def test_head_with_less_than_the_reserve_left_runs_alone():
    """A late head is not made later."""
    assert members(request("head", 100), request("small", 1), now_s=0.81) == ["head"]


def test_waiting_time_counts_against_the_head():
    """The reserve is measured at the predicted end, from now."""
    head, passenger = request("head", 100), request("passenger", 300)
    assert members(head, passenger, now_s=0.4) == ["head", "passenger"]
    assert members(head, passenger, now_s=0.6) == ["head"]


def test_cached_tokens_take_time_but_no_token_budget():
    """The bound counts computed tokens; the attention to a cached prefix counts as time."""
    cost = PrefillCost(0.0, 0.0, per_attention_pair_s=1e-6)
    head = request("head", 10)
    light = request("light", 10, num_cached_tokens=1_000)
    heavy = request("heavy", 10, num_cached_tokens=1_000_000)
    assert members(head, light, max_tokens=20, cost=cost) == ["head", "light"]
    assert members(head, heavy, max_tokens=20, cost=cost) == ["head"]


def test_no_passengers_is_fine():
    """A lone request is its own batch."""
    assert members(request("head", 5)) == ["head"]
