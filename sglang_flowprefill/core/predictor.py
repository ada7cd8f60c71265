"""How long a prefill takes.

time = base + sum over requests of (per_request + per_token * n + per_attention_pair * n *
(p + (n + 1) / 2)), at least the floor, with n uncached tokens after p cached ones. The terms are
launch overhead, bookkeeping of one more sequence, GEMMs, and causal attention (each token attends
to all before it and to itself).

Source: FlowPrefill, TTFT predictor. Differs: the reference fits a cubic through one offline
sample per length and knows no cached prefix.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sglang_flowprefill.core.request import PrefillRequest


def num_attention_pairs(num_uncached_tokens: int, num_cached_tokens: int = 0) -> float:
    """Count the query-key pairs of a causal prefill.

    >>> num_attention_pairs(3)
    6.0
    >>> num_attention_pairs(2, num_cached_tokens=10)
    23.0
    """
    return num_uncached_tokens * (num_cached_tokens + (num_uncached_tokens + 1) / 2)


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """Fitted cost of a prefill on one machine with one model.

    Attributes:
        base_s: Seconds of a forward pass whatever its size.
        per_token_s: Seconds per computed token.
        per_attention_pair_s: Seconds per query-key pair.
        floor_s: No forward pass is faster than this.
        per_request_s: Seconds per sequence in the batch, whatever its length.
    """

    base_s: float
    per_token_s: float
    per_attention_pair_s: float
    floor_s: float = 0.0
    per_request_s: float = 0.0

    def predict_s(self, requests: Iterable[PrefillRequest]) -> float:
        """Predict the seconds of one forward pass over these requests."""
        return self.total_s(sum(self.works_s(requests)))

    def predict_each_s(self, requests: Iterable[PrefillRequest]) -> list[float]:
        """Predict the seconds of each of these requests in a forward pass of its own."""
        base_s, floor_s = self.base_s, self.floor_s  # total_s() would cost a call each
        return [
            total_s if (total_s := base_s + work_s) > floor_s else floor_s
            for work_s in self.works_s(requests)
        ]

    def work_s(self, request: PrefillRequest) -> float:
        """Return what one request adds to a forward pass."""
        return self.works_s((request,))[0]

    def works_s(self, requests: Iterable[PrefillRequest]) -> list[float]:
        """Return what each of these requests adds to a forward pass.

        A round after a burst asks for thousands, so this is one loop without calls.
        """
        per_request_s, per_token_s = self.per_request_s, self.per_token_s
        per_pair_s = self.per_attention_pair_s
        works_s = []
        for request in requests:
            num_tokens = request.num_uncached_tokens
            mean_keys = request.num_cached_tokens + (num_tokens + 1) / 2
            works_s.append(per_request_s + num_tokens * (per_token_s + per_pair_s * mean_keys))
        return works_s

    def total_s(self, work_s: float) -> float:
        """Return the seconds of a forward pass whose requests add so much in all."""
        total_s = self.base_s + work_s
        return max(self.floor_s, total_s)  # max() costs a call

    def scaled(self, factor: float) -> "PrefillCost":
        """Return the cost on a machine that takes so many times as long."""
        return PrefillCost(
            factor * self.base_s,
            factor * self.per_token_s,
            factor * self.per_attention_pair_s,
            factor * self.floor_s,
            factor * self.per_request_s,
        )
