"""Fit a workload to the machine at hand without changing its shape.

Every function returns new requests and keeps their order; nothing is shuffled. A ``head`` keeps
bursts as they are, a ``sample`` the mix of the whole.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np

from bench.errors import UsageError
from bench.workloads.request import PrefixBlock, TraceRequest


def head(requests: Sequence[TraceRequest], num_requests: int) -> list[TraceRequest]:
    """Return the first ``num_requests`` requests.

    Raises:
        UsageError: There are fewer.
    """
    _require(requests, num_requests)
    return list(requests[:num_requests])


def sample(requests: Sequence[TraceRequest], num_requests: int, seed: int) -> list[TraceRequest]:
    """Return so many requests with the mix of the whole, in order of arrival.

    Ordered by class and length they are cut into as many parts of one size, of each of which one is
    drawn. So any number of requests has the classes and the lengths of all, the longest too,
    which are few and decide how long others wait. Lots decide which and so which moments of the
    trace they arrive at, the same lots for any number, so that samples of nearly one size are
    nearly the same.

    Args:
        requests: In order of arrival.
        num_requests: How many to return; all of them, if so many.
        seed: Of what is drawn.

    Raises:
        UsageError: There are fewer.
    """
    _require(requests, num_requests)
    by_kind = sorted(
        range(len(requests)),
        key=lambda index: (requests[index].slo_class, requests[index].num_input_tokens),
    )
    lots = np.random.default_rng(abs(seed)).random(len(requests))
    ends = [part * len(requests) // num_requests for part in range(num_requests + 1)]
    drawn = sorted(min(by_kind[start:end], key=lots.__getitem__) for start, end in pairwise(ends))
    return [requests[index] for index in drawn]


def scale_lengths(requests: Sequence[TraceRequest], factor: float) -> list[TraceRequest]:
    """Multiply prompt and output lengths by ``factor``, rounded, at least one token each."""
    return [
        replace(
            request,
            num_input_tokens=max(1, round(request.num_input_tokens * factor)),
            num_output_tokens=max(1, round(request.num_output_tokens * factor)),
            prefix=_scale_blocks(request.prefix, factor),
        )
        for request in requests
    ]


def cycle(requests: Sequence[TraceRequest], first: int, num_requests: int) -> list[TraceRequest]:
    """Return so many requests from number ``first`` on, going on at the head after the last one.

    The first arrives at 0, and the gap from the last to the head is the mean gap. Where requests
    come again, they share prefixes with one another as before, but not with those before them.

    Args:
        requests: In order of arrival, at least one.
        first: Which to begin with.
        num_requests: How many to return, also more than there are.
    """
    start_s, mean_gap_s = requests[first].arrival_s, 1 / (mean_rate_per_s(requests) or 1.0)
    lap_s = requests[-1].arrival_s - requests[0].arrival_s + mean_gap_s
    num_blocks = 1 + max((b.block_id for r in requests for b in r.prefix), default=0)

    def again(index: int) -> TraceRequest:
        lap, position = divmod(first + index, len(requests))
        request, first_block = requests[position], index // len(requests) * num_blocks
        return replace(
            request,
            arrival_s=request.arrival_s - start_s + lap * lap_s,
            prefix=tuple(replace(b, block_id=first_block + b.block_id) for b in request.prefix),
        )

    return [again(index) for index in range(num_requests)]


def draw_arrivals(requests: Sequence[TraceRequest], cv: float, seed: int) -> list[TraceRequest]:
    """Replace arrival times by a renewal process with gamma-distributed gaps and the same rate.

    Args:
        requests: At least two that arrive at different times.
        cv: Coefficient of variation of the gaps; 1 is a Poisson process, more is burstier.
        seed: Of the gaps.

    Raises:
        UsageError: All requests arrive at once.
    """
    rng = np.random.default_rng(seed)
    shape = 1 / cv**2
    gaps_s = rng.gamma(shape, 1 / shape, len(requests) - 1)
    arrivals_s = [0.0, *np.cumsum(gaps_s).tolist()]
    drawn = [replace(r, arrival_s=s) for r, s in zip(requests, arrivals_s, strict=True)]
    native_rate_per_s = mean_rate_per_s(requests)
    if native_rate_per_s is None:
        raise UsageError("arrivals can be drawn only where the trace has a rate")
    return scale_to_rate(drawn, native_rate_per_s)


def share_prefixes(
    requests: Sequence[TraceRequest], share: float, num_prefixes: int, seed: int
) -> list[TraceRequest]:
    """Let every prompt begin with one of ``num_prefixes`` documents, for ``share`` of its length.

    Which one is drawn with a weight of one over its rank, so that some are much more popular.
    The first prompt with each document still has to compute it.
    """
    weights = 1 / np.arange(1, num_prefixes + 1)
    rng = np.random.default_rng((abs(seed), num_prefixes))
    block_ids = rng.choice(num_prefixes, len(requests), p=weights / weights.sum())
    return [
        replace(r, prefix=(PrefixBlock(int(block_id), round(share * r.num_input_tokens)),))
        for r, block_id in zip(requests, block_ids, strict=True)
    ]


def _scale_blocks(blocks: Sequence[PrefixBlock], factor: float) -> tuple[PrefixBlock, ...]:
    # Ends are scaled, not lengths, so that equal heads of two prompts stay equal.
    ends = [0, *accumulate(block.num_tokens for block in blocks)]
    scaled = [round(end * factor) for end in ends]
    return tuple(
        PrefixBlock(block.block_id, end - start)
        for block, (start, end) in zip(blocks, pairwise(scaled), strict=True)
    )


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


def _require(requests: Sequence[TraceRequest], num_requests: int) -> None:
    if num_requests > len(requests):
        raise UsageError(f"{num_requests} requests asked for, the trace holds {len(requests)}")
