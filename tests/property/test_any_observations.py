"""No stream of observations makes the predictor say anything absurd."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_flowprefill.core import PrefillCost, PrefillRequest, Slo
from sglang_flowprefill.core.calibration import Calibration, Observation

coefficients = st.one_of(st.just(0.0), st.floats(1e-12, 10.0))
profiles = st.builds(
    PrefillCost,
    base_s=coefficients,
    per_token_s=coefficients,
    per_attention_pair_s=coefficients,
    floor_s=st.floats(0.0, 1.0),
)
observations = st.builds(
    Observation,
    num_requests=st.integers(0, 512),
    num_uncached_tokens=st.integers(0, 10**7),
    num_attention_pairs=st.floats(0.0, 1e14),
    actual_s=st.one_of(st.floats(1e-6, 1e4), st.floats(allow_nan=False, allow_infinity=False)),
)
PROMPTS = [[PrefillRequest("a", 0.0, Slo(1.0), n, p)] for n in (1, 100, 10**6) for p in (0, 10**6)]


@settings(max_examples=300, deadline=None)
@given(profiles, st.lists(observations, max_size=60))
def test_predictions_stay_finite_positive_and_ordered(profile, stream):
    """Whatever was observed; a longer prompt is never predicted to be faster."""
    calibration = Calibration.from_profile(profile)
    for observation in stream:
        calibration = calibration.observed(observation)
    assert calibration.num_observed + calibration.num_refused == len(stream)
    for cost in (calibration.cost, calibration.cautious_cost):
        seconds = [cost.predict_s(prompt) for prompt in PROMPTS]
        assert all(math.isfinite(s) and s >= 0.0 for s in seconds)
        assert seconds[0] <= seconds[2] <= seconds[4]
        assert seconds[0] <= seconds[1]
    assert 0.0 <= calibration.margin <= 1.0
    error = calibration.error
    assert math.isfinite(error.median_absolute)
    assert math.isfinite(error.bias)


@settings(max_examples=200, deadline=None)
@given(profiles, st.lists(observations, max_size=40))
def test_no_coefficient_leaves_its_bounds(profile, stream):
    """At most 64 times its unit, times a scale of at most 64."""
    calibration = Calibration.from_profile(profile)
    for observation in stream:
        calibration = calibration.observed(observation)
        assert all(0.0 <= factor <= 64.0 for factor in calibration.factors)
        assert 1 / 64 <= calibration.scale <= 64.0
