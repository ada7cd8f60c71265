"""The predictor learns from prefills that end. Synthetic machines with noise and outliers."""

import math
import random
from dataclasses import replace
from statistics import median

import pytest

from sglang_flowprefill.core import PrefillCost, PrefillRequest, Slo
from sglang_flowprefill.core.calibration import Calibration, Observation

PROFILE = PrefillCost(0.015, 1.5e-4, 8e-9, floor_s=0.008)
MACHINE = PrefillCost(0.02, 2e-4, 4e-9, per_request_s=0.003)
"""Other coefficients than the profile's, and sequences cost something, which it cannot know."""


def batches(rng, number):
    """Yield batches of one to eight prompts of 12 to 13,000 tokens, some with a cached prefix."""
    for _ in range(number):
        num_requests = rng.choice([1, 1, 1, 2, 4, 8])
        num_tokens = int(math.exp(rng.uniform(2.5, 9.5))) // num_requests + 1
        yield [
            PrefillRequest(str(i), 0.0, Slo(1.0), num_tokens, rng.choice([0, 0, 500, 4000]))
            for i in range(num_requests)
        ]


def observe(calibration, machine, number, *, seed=1, noise=0.1, outliers=0.05):
    """Serve batches on a machine with lognormal noise and gross outliers, and learn from them."""
    rng = random.Random(seed)
    for batch in batches(rng, number):
        actual_s = machine.predict_s(batch) * math.exp(rng.gauss(0.0, noise))
        if rng.random() < outliers:
            actual_s *= rng.choice([0.1, 5.0, 10.0])
        calibration = calibration.observed(Observation.of(batch, actual_s))
    return calibration


def errors(cost, machine, num_batches=300):
    """Return the relative errors of a predictor against the machine without noise, sorted."""
    return sorted(
        abs(cost.predict_s(batch) / machine.predict_s(batch) - 1.0)
        for batch in batches(random.Random(99), num_batches)
    )


def test_before_the_first_observation_it_predicts_what_the_profile_does():
    """Starting up changes nothing."""
    calibration = Calibration.from_profile(PROFILE)
    for batch in batches(random.Random(0), 20):
        assert calibration.cost.predict_s(batch) == pytest.approx(PROFILE.predict_s(batch))
    assert calibration.cautious_cost == calibration.cost
    assert calibration.error.num_observations == 0


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_it_learns_another_machine_through_noise_and_outliers(seed):
    """Within five per cent after 300 prefills, of which one in twenty lies grossly."""
    learned = observe(Calibration.from_profile(PROFILE), MACHINE, 300, seed=seed)
    off = errors(learned.cost, MACHINE)
    assert median(off) < 0.05
    assert off[-30] < 0.1
    assert median(errors(PROFILE, MACHINE)) > 0.2, "the profile by itself is not good enough"


def test_it_learns_what_a_further_sequence_costs():
    """A profile of single prompts cannot know; batches tell."""
    learned = observe(Calibration.from_profile(PROFILE), MACHINE, 300)
    assert PROFILE.per_request_s == 0.0
    assert learned.cost.per_request_s == pytest.approx(MACHINE.per_request_s, rel=0.5)


@pytest.mark.parametrize("factor", [2.0, 0.5, 4.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_machine_that_changes_its_speed_is_followed_within_fifty_prefills(factor, seed):
    """Though each of them looks like an outlier at first."""
    settled = observe(Calibration.from_profile(PROFILE), MACHINE, 300, seed=seed)
    changed = MACHINE.scaled(factor)
    followed = observe(settled, changed, 50, seed=seed + 10)
    assert median(errors(settled.cost, changed)) > 0.4
    assert median(errors(followed.cost, changed)) < 0.1
    assert errors(followed.cost, changed)[-30] < 0.15


def test_a_lasting_change_becomes_part_of_the_shape():
    """Scale and shape multiply the same thing; neither wanders off while the other follows."""
    before = observe(Calibration.from_profile(PROFILE), MACHINE, 200)
    changed = observe(before, MACHINE.scaled(4.0), 30, seed=2)
    later = observe(changed, MACHINE.scaled(4.0), 300, seed=3)
    assert changed.scale > 1.5
    assert later.scale == pytest.approx(1.0, abs=0.1)
    assert median(errors(later.cost, MACHINE.scaled(4.0))) < 0.05


def test_a_single_outlier_moves_nothing_much():
    """One stall of the machine is not a slower machine."""
    settled = observe(Calibration.from_profile(PROFILE), MACHINE, 200)
    batch = [PrefillRequest("a", 0.0, Slo(1.0), 1000)]
    before_s = settled.cost.predict_s(batch)
    after = settled.observed(Observation.of(batch, 30.0 * before_s))
    assert after.cost.predict_s(batch) == pytest.approx(before_s, rel=0.05)


def test_the_cautious_cost_covers_nine_of_ten_prefills():
    """That is what slack is computed with."""
    settled = observe(Calibration.from_profile(PROFILE), MACHINE, 300, outliers=0.0)
    rng = random.Random(5)
    covered = [
        MACHINE.predict_s(batch) * math.exp(rng.gauss(0.0, 0.1))
        <= settled.cautious_cost.predict_s(batch)
        for batch in batches(rng, 1000)
    ]
    assert 0.8 <= sum(covered) / len(covered) <= 0.99
    assert 0.05 <= settled.margin <= 0.3


def test_it_tells_its_own_error():
    """Median absolute error and bias of predictions made beforehand."""
    settled = observe(Calibration.from_profile(PROFILE), MACHINE, 300, noise=0.2, outliers=0.0)
    error = settled.error
    assert error.num_observations == 128
    assert error.median_absolute == pytest.approx(0.135, abs=0.05)  # of a lognormal of 0.2
    assert abs(error.bias) < 0.1
    surprised = observe(settled, MACHINE.scaled(0.5), 6, noise=0.0, outliers=0.0)
    assert surprised.error.bias > error.bias
    slow = observe(Calibration.from_profile(MACHINE), MACHINE.scaled(2.0), 1, noise=0.0, outliers=0)
    assert slow.error.bias == pytest.approx(-0.5)
    assert slow.scale == pytest.approx(1.0), "the first prefill may be a warm-up"


@pytest.mark.parametrize("actual_s", [0.0, -1.0, math.nan, math.inf, 1e9, 1e-9])
def test_what_cannot_be_true_is_refused(actual_s):
    """A clock that jumped does not reach the model."""
    settled = observe(Calibration.from_profile(PROFILE), MACHINE, 30)
    batch = [PrefillRequest("a", 0.0, Slo(1.0), 1000)]
    after = settled.observed(Observation.of(batch, actual_s))
    assert after == replace(settled, num_refused=1)


def test_a_cost_in_use_is_replaced_only_when_it_has_become_wrong():
    """Each replacement costs the scheduler its memory of predictions."""
    calibration, used = Calibration.from_profile(PROFILE), PROFILE
    num_replaced = 0
    rng = random.Random(3)
    for batch in batches(rng, 400):
        actual_s = MACHINE.predict_s(batch) * math.exp(rng.gauss(0.0, 0.05))
        calibration = calibration.observed(Observation.of(batch, actual_s))
        if calibration.has_moved_from(used, tolerance=0.1):
            used = calibration.cautious_cost
            num_replaced += 1
    assert not calibration.has_moved_from(calibration.cautious_cost)
    assert calibration.has_moved_from(PROFILE)
    assert 1 <= num_replaced <= 40


def test_observations_are_of_the_whole_batch():
    """Tokens and pairs add up, cached prefixes count as pairs only."""
    batch = [
        PrefillRequest("a", 0.0, Slo(1.0), 3),
        PrefillRequest("b", 0.0, Slo(1.0), 2, num_cached_tokens=10),
    ]
    assert Observation.of(batch, 0.5) == Observation(2, 5, 6.0 + 23.0, 0.5)
