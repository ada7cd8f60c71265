"""The decider's predictions follow what prefills really take."""

import pytest

from sglang_flowprefill.core import (
    CalibratedDecider,
    Calibration,
    Distortion,
    Fcfs,
    Observation,
    PrefillDecider,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.testing import MS_PER_TOKEN, make_request

REQUEST = make_request("r", num_uncached_tokens=1000)


def calibrated(distortion=Distortion()):  # noqa: B008 (immutable)
    """Return a decider that takes a token for a millisecond, until it learns better."""
    decider = PrefillDecider(Fcfs(), MS_PER_TOKEN, BatchLimits(max_tokens=512))
    return CalibratedDecider(decider, Calibration.from_profile(MS_PER_TOKEN), distortion)


def test_predictions_follow_a_machine_that_is_slower_than_its_profile():
    """After some prefills at three times the cost, the next one is predicted so; errors say it."""
    decider = calibrated()
    before_s = decider.present.predict_s([REQUEST])
    for _ in range(40):
        error = decider.learn(Observation(1, 1000, 500_500.0, 3 * before_s))
    assert decider.present.predict_s([REQUEST]) == pytest.approx(3 * before_s, rel=0.1)
    described = decider.describe()
    last = described.pop("recent")[-1]
    assert (last["num_uncached_tokens"], last["actual_s"]) == (1000, 3 * before_s)
    assert last["predicted_s"] == pytest.approx(3 * before_s, rel=0.1)
    cost = decider._calibration.cost
    assert described == {
        "num_observed": 40,
        "num_observations": error.num_observations,
        "median_absolute_error": round(error.median_absolute, 4),
        "bias": round(error.bias, 4),
        "margin": round(decider._calibration.margin, 4),
        "base_s": cost.base_s,
        "per_request_s": cost.per_request_s,
        "per_token_s": cost.per_token_s,
        "per_attention_pair_s": cost.per_attention_pair_s,
    }


def test_nothing_else_of_the_decider_changes():
    """Policy and limits are those that it was given."""
    decider = calibrated()
    before = decider.present
    for _ in range(40):
        decider.learn(Observation(1, 1000, 500_500.0, 9.0))
    assert decider.present is not before
    assert (decider.present.policy, decider.present.limits) == (before.policy, before.limits)


def test_a_distortion_holds_from_the_first_prediction_on():
    """Wrong on purpose before anything was observed, and still after."""
    plain_s = calibrated().present.predict_s([REQUEST])
    wrong = calibrated(Distortion(factor=0.5))
    assert wrong.present.predict_s([REQUEST]) == pytest.approx(plain_s / 2)
