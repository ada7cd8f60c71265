"""Scaling fits a workload to a machine and keeps its shape."""

import random

import pytest

from bench.errors import UsageError
from bench.workloads.request import TraceRequest
from bench.workloads.scaling import (
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


def test_a_sample_is_spread_over_the_whole_trace():
    """Its order and times are those of the trace, and any number has about the same mix."""
    rng = random.Random(3)
    trace = [
        TraceRequest(float(i), rng.choices(("text", "search"), (1 + i // 120, 1))[0], 100, 1)
        for i in range(240)
    ]
    share = sum(request.slo_class == "search" for request in trace) / 240
    for num_requests in (60, 80, 120, 240):
        sampled = sample(trace, num_requests)
        assert len(set(sampled)) == num_requests
        assert sampled == sorted(sampled, key=lambda request: request.arrival_s)
        assert sampled[-1].arrival_s >= 239 - 240 / num_requests
        num_searches = sum(request.slo_class == "search" for request in sampled)
        assert num_searches == pytest.approx(num_requests * share, abs=num_requests / 10)
    with pytest.raises(UsageError, match="holds 240"):
        sample(trace, 241)
