"""Scaling fits a workload to a machine and keeps its shape."""

import pytest

from bench.errors import UsageError
from bench.workloads.request import TraceRequest
from bench.workloads.scaling import head, mean_rate_per_s, scale_lengths, scale_to_rate

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
