"""The prefill time formula."""

import pytest

from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.core.predictor import num_attention_pairs
from sglang_flowprefill.testing import make_request


@pytest.mark.parametrize(
    ("num_uncached", "num_cached"), [(1, 0), (7, 0), (1, 9), (5, 3), (64, 128)]
)
def test_attention_pairs_are_those_of_a_causal_mask(num_uncached, num_cached):
    """Each new token attends to every cached one, every earlier new one and itself."""
    counted = sum(num_cached + row + 1 for row in range(num_uncached))
    assert num_attention_pairs(num_uncached, num_cached) == counted


def test_time_is_base_plus_tokens_plus_pairs_over_all_members():
    """One forward pass pays the base once and every member's work."""
    cost = PrefillCost(base_s=1.0, per_token_s=0.5, per_attention_pair_s=0.25)
    requests = [
        make_request(num_uncached_tokens=2, num_cached_tokens=10),
        make_request(num_uncached_tokens=3),
    ]
    assert cost.predict_s(requests) == 1.0 + 0.5 * 5 + 0.25 * (23 + 6)


def test_floor_is_the_least_prediction():
    """However small the batch, a forward pass takes at least the floor."""
    cost = PrefillCost(0.001, 0.001, 0.0, floor_s=0.02)
    assert cost.predict_s([make_request(num_uncached_tokens=1)]) == 0.02
    assert cost.predict_s([make_request(num_uncached_tokens=99)]) == pytest.approx(0.1)


def test_a_cached_prefix_is_cheaper_than_computing_it_and_dearer_than_none():
    """The prefix term orders the three ways to end at the same 1,000 tokens sensibly."""
    cost = PrefillCost(0.01, 1e-4, 1e-7)
    alone = cost.predict_s([make_request(num_uncached_tokens=100)])
    after_prefix = cost.predict_s([make_request(num_uncached_tokens=100, num_cached_tokens=900)])
    everything = cost.predict_s([make_request(num_uncached_tokens=1000)])
    assert alone < after_prefix < everything
