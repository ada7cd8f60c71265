"""How long each operator of a forward pass takes on the simulated machine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sglang_flowprefill.core import PrefillCost, PrefillRequest
from sglang_flowprefill.core.predictor import num_attention_pairs

# Share of a layer's dense time: norm, QKV, <attention>, output, norm, gate-up, down.
_BEFORE_ATTENTION = (0.02, 0.18)
_AFTER_ATTENTION = (0.12, 0.02, 0.42, 0.24)


@dataclass(frozen=True, slots=True)
class MachineModel:
    """Divides the predicted time of a forward pass into operators.

    Attributes:
        cost: What a forward pass takes in all; an ``Arrival`` may deviate by its own factor.
        num_layers: Layers of the model, seven operators each.
        max_tile_s: Attention longer than this is cut into equal tiles, as the tiled kernel does.
        decode_step_s: Seconds of one decode step, whatever its size...
        decode_request_s: ...and this many more for each request in it.
        num_kv_tokens: KV slots in all; None for as many as anybody wants.
        max_chunk_tokens: A longer prompt is prefilled in several forward passes; None for one.
        bytes_per_token: Activations that a suspended prefill keeps, per token of its forward pass.
    """

    cost: PrefillCost
    num_layers: int = 28
    max_tile_s: float = math.inf
    decode_step_s: float = 0.0
    decode_request_s: float = 0.0
    num_kv_tokens: int | None = None
    max_chunk_tokens: int | None = None
    bytes_per_token: int = 0

    def operators_s(self, requests: Sequence[PrefillRequest], slowdown: float = 1.0) -> list[float]:
        """Return the seconds of every operator, in order; they sum to the predicted time.

        Args:
            requests: Members of the batch.
            slowdown: Actual over predicted time.
        """
        num_pairs = sum(
            num_attention_pairs(r.num_uncached_tokens, r.num_cached_tokens) for r in requests
        )
        attention_s = self.cost.per_attention_pair_s * num_pairs
        dense_s = max(self.cost.predict_s(requests) - attention_s, 0.0)  # rounding
        dense_s *= slowdown / self.num_layers
        attention_s *= slowdown / self.num_layers
        num_tiles = max(math.ceil(attention_s / self.max_tile_s), 1)
        layer = [
            *(share * dense_s for share in _BEFORE_ATTENTION),
            *[attention_s / num_tiles] * num_tiles,
            *(share * dense_s for share in _AFTER_ATTENTION),
        ]
        return layer * self.num_layers

    def chunks(self, requests: Sequence[PrefillRequest]) -> list[tuple[PrefillRequest, ...]]:
        """Return the forward passes of a batch, each by what it computes.

        A lone long prompt becomes chunks, of which each finds those before it cached. Anything
        else is one forward pass.
        """
        (head, *others), max_tokens = requests, self.max_chunk_tokens
        if others or max_tokens is None or head.num_uncached_tokens <= max_tokens:
            return [tuple(requests)]
        chunks: list[tuple[PrefillRequest, ...]] = []
        for start in range(0, head.num_uncached_tokens, max_tokens):
            num_tokens = min(max_tokens, head.num_uncached_tokens - start)
            num_cached = head.num_cached_tokens + start
            chunk = replace(head, num_uncached_tokens=num_tokens, num_cached_tokens=num_cached)
            chunks.append((chunk,))
        return chunks
