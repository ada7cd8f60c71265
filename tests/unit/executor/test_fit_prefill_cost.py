"""From measured prefill times to a predictor."""

import random

import pytest

from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.executor import (
    PrefillShape,
    ProfileSample,
    fit_prefill_cost,
    saturation_tokens,
)
from sglang_flowprefill.testing import make_request

LENGTHS = [(16, 0), (64, 0), (256, 0), (1024, 0), (4096, 0), (16384, 0), (512, 8192)]


def predict_s(cost, num_uncached, num_cached=0):
    """Predict one request."""
    return cost.predict_s(
        [make_request(num_uncached_tokens=num_uncached, num_cached_tokens=num_cached)]
    )


def samples_of(cost, noise=lambda: 1.0, lengths=LENGTHS):
    """Return what a machine of this cost would measure."""
    return [ProfileSample(PrefillShape(n, p), predict_s(cost, n, p) * noise()) for n, p in lengths]


@pytest.mark.parametrize(
    ("base_s", "per_token_s", "per_attention_pair_s"),
    [
        (0.02, 1e-3, 1e-7),
        (5e-3, 2e-5, 3e-10),
        (0.0, 1e-3, 0.0),
        (0.05, 0.0, 1e-7),
        (0.0, 0.0, 1e-6),
    ],
)
def test_known_coefficients_are_recovered(base_s, per_token_s, per_attention_pair_s):
    """Exact measurements give the machine's coefficients, zeros included."""
    fitted = fit_prefill_cost(samples_of(PrefillCost(base_s, per_token_s, per_attention_pair_s)))
    for found, true in [
        (fitted.base_s, base_s),
        (fitted.per_token_s, per_token_s),
        (fitted.per_attention_pair_s, per_attention_pair_s),
    ]:
        assert found == pytest.approx(true, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_ten_percent_is_not_amplified(seed):
    """Short and long prompts alike are predicted about as well as they were measured."""
    cost = PrefillCost(0.02, 1e-3, 1e-7)
    random_source = random.Random(seed)
    fitted = fit_prefill_cost(samples_of(cost, lambda: random_source.uniform(0.9, 1.1)))
    for length in [(20, 0), (300, 0), (3000, 0), (12000, 0), (256, 6000)]:
        assert predict_s(fitted, *length) == pytest.approx(predict_s(cost, *length), rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_a_longer_prompt_is_never_predicted_faster(seed):
    """Whatever nonsense was measured, no coefficient is negative."""
    random_source = random.Random(seed)
    samples = [
        ProfileSample(PrefillShape(n, p), random_source.uniform(0.01, 1.0)) for n, p in LENGTHS
    ]
    fitted = fit_prefill_cost(samples)
    predictions = [predict_s(fitted, n) for n in (1, 10, 100, 1000, 10_000, 100_000)]
    assert predictions == sorted(predictions)
    assert min(fitted.base_s, fitted.per_token_s, fitted.per_attention_pair_s) >= 0.0


def test_no_prediction_is_below_half_the_fastest_measurement():
    """The floor keeps slack finite for prompts shorter than any sample."""
    fitted = fit_prefill_cost(samples_of(PrefillCost(0.0, 1e-3, 0.0)))
    assert predict_s(fitted, 1) == pytest.approx(0.016 / 2)


@pytest.mark.parametrize("num_samples", [0, 2])
def test_too_few_samples_are_refused(num_samples):
    """Three coefficients need three measurements."""
    with pytest.raises(ValueError, match=f"at least 3 samples, got {num_samples}"):
        fit_prefill_cost(samples_of(PrefillCost(1.0, 0.0, 0.0))[:num_samples])


def test_the_cost_of_one_more_sequence_is_told_apart_from_that_of_a_pass():
    """Batches of short prompts separate what is paid per pass from what is paid per sequence."""
    true = PrefillCost(0.02, 1e-3, 1e-7, per_request_s=0.003)
    shapes = [PrefillShape(n, p) for n, p in LENGTHS] + [PrefillShape(16, 0, 8)]
    unit = ProfileSample(shapes[0], 1.0)
    samples = [ProfileSample(s, ProfileSample(s, 1.0).predicted_s(true)) for s in shapes]
    fitted = fit_prefill_cost(samples)
    assert fitted.per_request_s == pytest.approx(0.003)
    assert fitted.base_s == pytest.approx(0.02)
    assert unit.predicted_s(fitted) == pytest.approx(unit.predicted_s(true))


def test_without_batches_a_sequence_costs_nothing_of_its_own():
    """Nothing tells the two apart then, and the whole is predicted right all the same."""
    true = PrefillCost(0.02, 1e-3, 1e-7, per_request_s=0.003)
    fitted = fit_prefill_cost(samples_of(true))
    assert fitted.per_request_s == 0.0
    assert predict_s(fitted, 100) == pytest.approx(predict_s(true, 100))


def test_throughput_saturates_where_more_tokens_buy_little():
    """The budget is the shortest prompt at nine tenths of the best throughput."""
    seconds = {64: 0.064, 256: 0.142, 512: 0.250, 1024: 0.480, 4096: 2.4}
    samples = [ProfileSample(PrefillShape(n), s) for n, s in seconds.items()]
    # Batches and prefixes do not count.
    samples += [ProfileSample(s, 0.0001) for s in (PrefillShape(64, 0, 8), PrefillShape(64, 1024))]
    assert saturation_tokens(samples) == 512


def test_samples_name_themselves():
    """Logs and tables say what was prefilled."""
    shapes = [PrefillShape(64), PrefillShape(64, 1024), PrefillShape(16, 0, 8)]
    assert [str(s) for s in shapes] == ["64 tokens", "64 tokens after 1024", "8 x 16 tokens"]
