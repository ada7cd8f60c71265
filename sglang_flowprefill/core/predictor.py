"""How long a prefill takes.

time = base + per_token * n + per_attention_pair * n * (p + (n + 1) / 2), at least the floor,
with n uncached tokens after p cached ones: the first term is launch overhead, the second the
GEMMs, the third causal attention (each token attends to all before it and to itself).

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
    """

    base_s: float
    per_token_s: float
    per_attention_pair_s: float
    floor_s: float = 0.0

    def predict_s(self, requests: Iterable[PrefillRequest]) -> float:
        """Predict the seconds of one forward pass over these requests."""
        seconds = self.base_s
        for request in requests:
            seconds += self.per_token_s * request.num_uncached_tokens
            seconds += self.per_attention_pair_s * num_attention_pairs(
                request.num_uncached_tokens, request.num_cached_tokens
            )
        return max(seconds, self.floor_s)
