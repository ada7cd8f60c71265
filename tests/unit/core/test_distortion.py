"""Predictions that are wrong on purpose."""

import math
import statistics

import pytest

from sglang_flowprefill.core import Distortion, PrefillCost
from sglang_flowprefill.testing import make_request

COST = PrefillCost(0.01, 1e-4, 1e-9, floor_s=0.001, per_request_s=0.002)


def test_the_default_changes_nothing():
    """A server that asks for no distortion keeps its very predictor."""
    assert Distortion().of(COST) is COST


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_factor_is_on_every_prediction(factor):
    """Short and long prompts, alone and together, are off by the same."""
    wrong = Distortion(factor).of(COST)
    for lengths in ([16], [4000], [16, 300, 2000]):
        requests = [make_request(str(n), num_uncached_tokens=n) for n in lengths]
        assert wrong.predict_s(requests) == pytest.approx(factor * COST.predict_s(requests))


def test_noise_is_one_error_for_each_request_for_life():
    """A request is predicted alike each time; over many the errors are of the size asked for."""
    noisy = Distortion(noise=0.2).of(COST)
    requests = [make_request(f"request {i}", num_uncached_tokens=500) for i in range(400)]
    ratios = [noisy.work_s(r) / COST.work_s(r) for r in requests]
    assert ratios == [noisy.work_s(r) / COST.work_s(r) for r in requests]
    assert statistics.stdev(map(math.log, ratios)) == pytest.approx(0.2, rel=0.15)
    assert statistics.median(ratios) == pytest.approx(1.0, rel=0.05)
