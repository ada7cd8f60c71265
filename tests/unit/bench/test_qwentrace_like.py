"""The built-in generator has the published statistics of the QwenTrace window."""

import numpy as np
import pytest

from bench.workloads.qwentrace_like import NATIVE_RATE_PER_S, generate_requests

MANY = generate_requests(20_000, seed=1)

# class: (share of 327, mean, std, p50, p90, max) of prompt tokens in the window.
PUBLISHED = {
    "text": (226 / 327, 646, 630, 744, 1118, 4613),
    "image": (24 / 327, 393, 113, 372, 394, 929),
    "search": (66 / 327, 5055, 3070, 4378, 8066, 16744),
    "file": (11 / 327, 4132, 3519, 3210, 9116, 10720),
}


@pytest.mark.parametrize("slo_class", PUBLISHED)
def test_class_statistics_are_those_of_the_window(slo_class):
    """Share, mean, p50, p90 and maximum of each class come close to the published ones."""
    share, mean, std, p50, p90, maximum = PUBLISHED[slo_class]
    lengths = np.array([r.num_input_tokens for r in MANY if r.slo_class == slo_class])
    assert len(lengths) / len(MANY) == pytest.approx(share, rel=0.1)
    assert lengths.mean() == pytest.approx(mean, rel=0.07)
    assert np.percentile(lengths, 50) == pytest.approx(p50, rel=0.06)
    assert np.percentile(lengths, 90) == pytest.approx(p90, rel=0.06)
    # Linear pieces lose spread in the tail, most in "image", whose outliers are two of 24.
    assert lengths.std() == pytest.approx(std, rel=0.4 if slo_class == "image" else 0.15)
    assert lengths.max() <= maximum


def test_arrivals_are_poisson_at_the_native_rate():
    """Arrivals ascend from 0, with the window's mean rate and gaps that vary like Poisson's."""
    gaps_s = np.diff([r.arrival_s for r in MANY])
    assert MANY[0].arrival_s == 0
    assert gaps_s.min() >= 0
    assert 1 / gaps_s.mean() == pytest.approx(NATIVE_RATE_PER_S, rel=0.03)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(1.0, abs=0.05)


def test_same_seed_gives_same_requests():
    """A seed names one workload; another seed names another."""
    assert generate_requests(50, seed=3) == generate_requests(50, seed=3)
    assert generate_requests(50, seed=3) != generate_requests(50, seed=4)


def test_shorter_workload_is_head_of_longer_one():
    """Asking for fewer requests cuts the workload instead of drawing another."""
    assert generate_requests(20, seed=5) == generate_requests(80, seed=5)[:20]
