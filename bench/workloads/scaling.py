"""Fit a workload to the machine at hand without changing its shape.

Every function returns new requests and keeps their order. Windows are contiguous from the head
of the trace, never shuffled or thinned: a burst stays a burst.
"""

from collections.abc import Sequence
from dataclasses import replace

from bench.errors import UsageError
from bench.workloads.request import TraceRequest


def head(requests: Sequence[TraceRequest], num_requests: int) -> list[TraceRequest]:
    """Return the first ``num_requests`` requests.

    Raises:
        UsageError: There are fewer.
    """
    if num_requests > len(requests):
        raise UsageError(f"{num_requests} requests asked for, the trace holds {len(requests)}")
    return list(requests[:num_requests])


def scale_lengths(requests: Sequence[TraceRequest], factor: float) -> list[TraceRequest]:
    """Multiply prompt and output lengths by ``factor``, rounded, at least one token each."""
    return [
        replace(
            request,
            num_input_tokens=max(1, round(request.num_input_tokens * factor)),
            num_output_tokens=max(1, round(request.num_output_tokens * factor)),
        )
        for request in requests
    ]


def scale_to_rate(requests: Sequence[TraceRequest], rate_per_s: float) -> list[TraceRequest]:
    """Multiply all gaps by one factor so that their mean is ``1 / rate_per_s``.

    The first request arrives at 0.

    Raises:
        UsageError: All requests arrive at once, so no factor can give them a rate.
    """
    native_rate_per_s = mean_rate_per_s(requests)
    if native_rate_per_s is None:
        raise UsageError("a rate needs at least two requests that arrive at different times")
    factor = native_rate_per_s / rate_per_s
    first_s = requests[0].arrival_s
    return [
        replace(request, arrival_s=(request.arrival_s - first_s) * factor) for request in requests
    ]


def mean_rate_per_s(requests: Sequence[TraceRequest]) -> float | None:
    """Return 1 / mean gap, or None where there is no gap to take a mean of."""
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    return (len(requests) - 1) / span_s if span_s > 0 else None
