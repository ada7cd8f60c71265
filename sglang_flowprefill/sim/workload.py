"""The requests of a simulation: a trace, stretched to a rate, with arrivals of one seed or another.

Seed 0 keeps the trace's own pattern of arrivals. Other seeds draw gaps with the same mean and the
same coefficient of variation, which shows how much of an answer is this one pattern.
"""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, pstdev

from sglang_flowprefill.core import PrefillRequest, Slo
from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.sim.kv_pool import Blocks
from sglang_flowprefill.sim.records import Arrival

_MIN_CV = 0.05


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request of a trace.

    Attributes:
        arrival_s: Seconds since the start of the trace.
        class_name: Its SLO class.
        num_input_tokens: Length of its prompt.
        num_output_tokens: Tokens that it generates.
        prefix: Blocks at the head of its prompt that others may share.
    """

    arrival_s: float
    class_name: str
    num_input_tokens: int
    num_output_tokens: int
    prefix: Blocks = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace with the objectives of its classes.

    Attributes:
        requests: In order of arrival, at least two.
        slos: Objectives of every class that occurs.
        origin: Where it comes from, with its caveat.
        max_new_tokens: What every client asks for; None for what its request will generate.
        first_tokens_only: Requests end with their first token.
    """

    requests: Sequence[TracedRequest]
    slos: Mapping[str, Slo]
    origin: str
    max_new_tokens: int | None = None
    first_tokens_only: bool = True

    def __post_init__(self) -> None:
        if len(self.requests) < 2:
            raise PlanError(f"{self.origin}: a rate needs at least two requests")
        if self.requests[-1].arrival_s <= self.requests[0].arrival_s:
            raise PlanError(f"{self.origin}: all requests arrive at once; a rate needs gaps")
        unknown = sorted({r.class_name for r in self.requests} - set(self.slos))
        if unknown:
            raise PlanError(
                f"{self.origin}: no objective for class {', '.join(map(repr, unknown))}; "
                f"there are {', '.join(self.slos) or 'none'}"
            )

    @property
    def rate_per_s(self) -> float:
        """The trace's own rate."""
        span_s = self.requests[-1].arrival_s - self.requests[0].arrival_s
        return (len(self.requests) - 1) / span_s

    @property
    def arrival_cv(self) -> float:
        """Coefficient of variation of the gaps between arrivals."""
        gaps_s = [b.arrival_s - a.arrival_s for a, b in pairwise(self.requests)]
        return pstdev(gaps_s) / fmean(gaps_s)

    @property
    def digest(self) -> str:
        """Hash of all that a simulation reads of it."""
        text = repr((tuple(self.requests), sorted(self.slos.items()), self.max_new_tokens))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_slo_scale(self, factor: float) -> "Workload":
        """Return it with all objectives this many times as long."""
        slos = {
            name: replace(
                slo,
                ttft_s=slo.ttft_s * factor,
                tpot_s=None if slo.tpot_s is None else slo.tpot_s * factor,
                predicted_factor=slo.predicted_factor * factor,
            )
            for name, slo in self.slos.items()
        }
        return replace(self, slos=slos)

    def arrivals(self, rate_per_s: float, num_requests: int, seed: int = 0) -> list[Arrival]:
        """Return so many requests at this rate; the trace is repeated where it is shorter.

        Args:
            rate_per_s: Mean rate.
            num_requests: How many.
            seed: 0 for the trace's own arrivals.
        """
        times_s = self._times_s(num_requests) if seed == 0 else self._drawn_s(num_requests, seed)
        factor = self.rate_per_s / rate_per_s
        return [self._arrival(index, time_s * factor) for index, time_s in enumerate(times_s)]

    def _times_s(self, num_requests: int) -> list[float]:
        first_s, rate = self.requests[0].arrival_s, self.rate_per_s
        lap_s = self.requests[-1].arrival_s - first_s + 1.0 / rate
        times_s = []
        for index in range(num_requests):
            lap, position = divmod(index, len(self.requests))
            times_s.append(self.requests[position].arrival_s - first_s + lap * lap_s)
        return times_s

    def _drawn_s(self, num_requests: int, seed: int) -> list[float]:
        draw = random.Random(seed)  # noqa: S311 (a simulation)
        shape = 1.0 / max(self.arrival_cv, _MIN_CV) ** 2
        gaps_s = [draw.gammavariate(shape, 1.0 / shape) for _ in range(num_requests - 1)]
        mean_s = 1.0 / self.rate_per_s
        scale = mean_s * len(gaps_s) / math.fsum(gaps_s)  # the mean exactly, so that rates compare
        times_s = [0.0]
        for gap_s in gaps_s:
            times_s.append(times_s[-1] + scale * gap_s)
        return times_s

    def _arrival(self, index: int, time_s: float) -> Arrival:
        lap, position = divmod(index, len(self.requests))
        traced = self.requests[position]
        request = PrefillRequest(
            str(index), time_s, self.slos[traced.class_name], traced.num_input_tokens
        )
        num_output_tokens = 1 if self.first_tokens_only else traced.num_output_tokens
        # A repeated trace shares prefixes within each repetition, not between them.
        prefix = [(lap << 40 | block_id, num) for block_id, num in traced.prefix]
        return Arrival(
            request,
            num_output_tokens,
            max_new_tokens=None if self.first_tokens_only else self.max_new_tokens,
            prefix=prefix,
        )
