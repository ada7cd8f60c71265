"""The burst of the demo: long documents first, short urgent prompts right behind them."""

from collections.abc import Sequence
from dataclasses import replace

from bench.workloads.qwentrace_like import generate_requests
from bench.workloads.request import TraceRequest
from bench.workloads.scaling import scale_lengths
from bench.workloads.workload import Workload

LENGTH_SCALE = 0.25
SLO_SCALE = 4.0
_NUM_DOCUMENTS = 4
_DOCUMENT_GAP_S = 0.1
_HEAD_START_S = 1.0  # the documents are under way before the first short prompt comes


def burst(num_requests: int, rate_per_s: float, seed: int) -> Workload:
    """Return the longest prompts of the built-in generator first, then the others as they come.

    Args:
        num_requests: In all.
        rate_per_s: Of those behind the documents.
        seed: Of the generator.
    """
    drawn = scale_lengths(generate_requests(num_requests, seed), LENGTH_SCALE)
    by_length = sorted(drawn, key=lambda request: request.num_input_tokens, reverse=True)
    documents = by_length[:_NUM_DOCUMENTS]
    others = [request for request in drawn if request not in documents]
    first = [replace(d, arrival_s=i * _DOCUMENT_GAP_S) for i, d in enumerate(documents)]
    requests = (*first, *_at_rate(others, rate_per_s))
    return Workload(requests, f"built-in generator, its {len(first)} longest prompts first")


def _at_rate(requests: Sequence[TraceRequest], rate_per_s: float) -> list[TraceRequest]:
    """Keep the pattern of the gaps; their mean becomes ``1 / rate_per_s``."""
    if not requests:
        return []
    first_s, span_s = requests[0].arrival_s, requests[-1].arrival_s - requests[0].arrival_s
    factor = len(requests) / rate_per_s / span_s if span_s > 0 else 0.0
    return [
        replace(request, arrival_s=_HEAD_START_S + (request.arrival_s - first_s) * factor)
        for request in requests
    ]
