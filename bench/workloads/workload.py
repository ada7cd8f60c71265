"""A prepared workload, and the recipe that made it.

``WorkloadSpec.build`` is the only place where loading, cutting and scaling are put in order:
window, then lengths, prefixes and arrivals, then rate, so that the rate is that of the requests
really used.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from bench.workloads.qwentrace_like import generate_requests
from bench.workloads.request import TraceRequest
from bench.workloads.scaling import (
    cycle,
    draw_arrivals,
    head,
    mean_rate_per_s,
    sample,
    scale_lengths,
    scale_to_rate,
    share_prefixes,
)
from bench.workloads.trace_file import read_trace

BUILT_IN_NUM_REQUESTS = 327
# A result must never look more real than the trace it was measured with.
_CAVEATS = ("reconstructed", "synthetic")


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests ready to replay.

    Attributes:
        requests: In order of arrival.
        origin: Where they come from, with its caveat, for titles.
    """

    requests: tuple[TraceRequest, ...]
    origin: str

    @property
    def rate_per_s(self) -> float | None:
        """Offered rate, None where all requests arrive at once."""
        return mean_rate_per_s(self.requests)


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """How to make a workload.

    Attributes:
        trace: Trace file; None takes the built-in generator.
        num_requests: Requests at the head of the trace to use; None takes all (the generator:
            327).
        sample_size: Of those, take so many, with the same mix (``scaling.sample``), or repeat them
            if there are fewer; None takes all.
        rate_per_s: Offered rate; None keeps the trace's own.
        length_scale: Factor on prompt and output lengths.
        seed: Of the built-in generator, and of whatever else is drawn.
        begin_at: Share of them after which to begin, below 1; they go on at the head after the end.
        arrival_cv: Draw arrivals with this coefficient of variation of gaps; None keeps them.
        shared_prefix: Share of every prompt that is one of ``num_prefixes`` documents.
        num_prefixes: How many there are.
    """

    trace: Path | None = None
    num_requests: int | None = None
    sample_size: int | None = None
    rate_per_s: float | None = None
    length_scale: float = 1.0
    seed: int = 0
    begin_at: float = 0.0
    arrival_cv: float | None = None
    shared_prefix: float = 0.0
    num_prefixes: int = 8

    def build(self) -> Workload:
        """Load or generate, cut and scale.

        Raises:
            BenchError: The trace is malformed, too short, or cannot be given this rate.
        """
        if self.trace is None:
            requests = generate_requests(self.num_requests or BUILT_IN_NUM_REQUESTS, self.seed)
        else:
            requests = read_trace(self.trace)
            if self.num_requests is not None:
                requests = head(requests, self.num_requests)
        num_laps = ceil((self.sample_size or 1) / len(requests))
        first = round(self.begin_at * len(requests)) % len(requests)
        requests = cycle(requests, first, num_laps * len(requests))
        if self.sample_size is not None:
            requests = sample(requests, self.sample_size, self.seed)
        requests = scale_lengths(requests, self.length_scale)
        if self.shared_prefix:
            requests = share_prefixes(requests, self.shared_prefix, self.num_prefixes, self.seed)
        if self.arrival_cv is not None:
            requests = draw_arrivals(requests, self.arrival_cv, self.seed)
        if self.rate_per_s is not None:
            requests = scale_to_rate(requests, self.rate_per_s)
        return Workload(tuple(requests), self.origin)

    @property
    def origin(self) -> str:
        """Name the source, with the caveat that its file name carries and what was changed."""
        changes = []
        if self.arrival_cv is not None:
            changes.append(f"arrivals drawn with CV {self.arrival_cv:g}")
        if self.shared_prefix:
            changes.append(f"{self.shared_prefix:.0%} of every prompt shared")
        return ", ".join([self._source, *changes])

    @property
    def _source(self) -> str:
        if self.trace is None:
            return "built-in generator (QwenTrace-like)"
        name = self.trace.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl")
        caveats = [caveat for caveat in _CAVEATS if caveat in name.lower()]
        return f"{name} ({', '.join(caveats)})" if caveats else name
