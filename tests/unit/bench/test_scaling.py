"""Scaling fits a workload to a machine and keeps its shape."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.workloads.request import PrefixBlock, TraceRequest
from bench.workloads.scaling import (
    cycle,
    head,
    mean_rate_per_s,
    sample,
    scale_lengths,
    scale_to_rate,
)

REQUESTS = [
    TraceRequest(2.0, "text", 10, 4),
    TraceRequest(3.0, "file", 1000, 1),
    TraceRequest(6.0, "text", 2, 30),
]


def test_lengths_scale_and_never_vanish():
    """Lengths are multiplied and rounded, with at least one token left."""
    scaled = scale_lengths(REQUESTS, 0.25)
    assert [(r.num_input_tokens, r.num_output_tokens) for r in scaled] == [(2, 1), (250, 1), (1, 8)]


def test_rate_is_that_of_the_requests_used():
    """Gaps keep their proportions, start at 0, and have the mean that the rate asks for."""
    scaled = scale_to_rate(REQUESTS, 4.0)
    assert [r.arrival_s for r in scaled] == pytest.approx([0.0, 0.125, 0.5])
    assert mean_rate_per_s(scaled) == pytest.approx(4.0)


def test_requests_at_one_instant_have_no_rate():
    """A rate for a single request, or for one burst, is refused instead of dividing by zero."""
    with pytest.raises(UsageError, match="rate"):
        scale_to_rate(REQUESTS[:1], 1.0)


def test_head_is_contiguous_and_never_short():
    """The window is the head; asking for more than there is is an error."""
    assert head(REQUESTS, 2) == REQUESTS[:2]
    with pytest.raises(UsageError, match="4 requests"):
        head(REQUESTS, 4)


def test_a_cycle_goes_on_at_the_head_as_often_as_asked():
    """With the mean gap from the last to the head; one instant comes again a second later."""
    cycled = cycle(REQUESTS, 1, 5)
    assert [r.num_input_tokens for r in cycled] == [1000, 2, 10, 1000, 2]
    assert [r.arrival_s for r in cycled] == pytest.approx([0.0, 3.0, 5.0, 6.0, 9.0])
    assert [r.arrival_s for r in cycle(REQUESTS[:1], 0, 3)] == [0.0, 1.0, 2.0]


def test_a_round_shares_no_prefix_with_the_one_before():
    """A cache would make the second round cheaper than a trace of that length; within one stays."""
    shared = [replace(r, prefix=(PrefixBlock(i % 2, 2),)) for i, r in enumerate(REQUESTS)]
    blocks = [r.prefix[0].block_id for r in cycle(shared, 1, 6)]
    first, second = blocks[:3], blocks[3:]
    assert first == [1, 0, 0]
    assert second[1] == second[2] != second[0]
    assert not set(first) & set(second)


@given(num_requests=st.integers(1, 240), seed=st.integers(0, 9))
def test_a_sample_has_the_mix_of_the_whole(num_requests, seed):
    """As many of each class and of each range of lengths as fall to it, give or take two."""
    rng = random.Random(3)
    trace = [
        TraceRequest(float(i), rng.choices(("file", "text"), (1, 9))[0], rng.randint(1, 9999), 1)
        for i in range(240)
    ]
    sampled = sample(trace, num_requests, seed)
    assert len(set(sampled)) == num_requests
    assert sampled == sorted(sampled, key=lambda request: request.arrival_s)
    for slo_class in ("file", "text"):
        for least in (0, 5000, 9000):
            of_all, of_sample = (
                sum(r.slo_class == slo_class and r.num_input_tokens >= least for r in some)
                for some in (trace, sampled)
            )
            assert abs(of_sample - of_all * num_requests / 240) <= 2


def test_another_seed_draws_another_sample_and_another_size_nearly_the_same():
    """Seeds that drew the same would be one seed; neighbouring rates are to differ by the rate."""
    trace = [TraceRequest(float(i), "text", 1 + i, 1) for i in range(240)]
    first, second, again = (sample(trace, 80, seed) for seed in (0, 1, 0))
    assert first == again
    assert len(set(first) & set(second)) < 40
    assert len(set(first) & set(sample(trace, 84, 0))) > 60
    assert sample(trace, 240, 5) == trace
    with pytest.raises(UsageError, match="holds 240"):
        sample(trace, 241, 0)
