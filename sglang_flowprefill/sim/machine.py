"""How long each operator of a forward pass takes on the simulated machine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sglang_flowprefill.core import PrefillCost, PrefillRequest
from sglang_flowprefill.core.predictor import num_attention_pairs
from sglang_flowprefill.sim.forward_times import ForwardTimes

# Share of a layer's dense time: norm, QKV, <attention>, output, norm, gate-up, down.
_BEFORE_ATTENTION = (0.02, 0.18)
_AFTER_ATTENTION = (0.12, 0.02, 0.42, 0.24)


class Machine(Protocol):
    """What the simulated engine asks of the hardware.

    Attributes:
        num_kv_tokens: KV slots in all; None for as many as anybody wants.
        page_tokens: KV slots are handed out in pages of so many.
        max_chunk_tokens: A longer prompt is prefilled in several forward passes; None for one.
        bytes_per_token: Activations that a suspended prefill keeps, per token of its forward pass.
        ack_s: Seconds from the boundary at which a prefill stops until the device is idle.
    """

    @property
    def num_kv_tokens(self) -> int | None: ...  # noqa: D102 (documented above)
    @property
    def page_tokens(self) -> int: ...  # noqa: D102
    @property
    def max_chunk_tokens(self) -> int | None: ...  # noqa: D102
    @property
    def bytes_per_token(self) -> int: ...  # noqa: D102
    @property
    def ack_s(self) -> float: ...  # noqa: D102

    def forward(self, requests: Sequence[PrefillRequest], slowdown: float) -> ForwardTimes:
        """Return the boundaries of a forward pass over these requests.

        Args:
            requests: Members of the batch.
            slowdown: Actual over predicted time.
        """
        ...

    def step_s(self, num_requests: int, num_context_tokens: int) -> float:
        """Return the seconds of a decode step; linear in the context.

        Args:
            num_requests: Running requests.
            num_context_tokens: Tokens before the new ones, of all of them together.
        """
        ...


@dataclass(frozen=True, slots=True)
class MachineModel:
    """Divides the predicted time of a forward pass into operators, by a small model's shares.

    Attributes:
        cost: What a forward pass takes in all; an ``Arrival`` may deviate by its own factor.
        num_layers: Layers of the model, seven operators each.
        max_tile_s: Attention longer than this is cut into equal tiles, as the tiled kernel does.
        decode_step_s: Seconds of one decode step, whatever its size...
        decode_request_s: ...and this many more for each request in it.
        num_kv_tokens: KV slots in all; None for as many as anybody wants.
        max_chunk_tokens: A longer prompt is prefilled in several forward passes; None for one.
        bytes_per_token: Activations that a suspended prefill keeps, per token of its forward pass.
        page_tokens: KV slots are handed out in pages of so many.
        ack_s: Seconds from a boundary until the device is idle.
    """

    cost: PrefillCost
    num_layers: int = 28
    max_tile_s: float = math.inf
    decode_step_s: float = 0.0
    decode_request_s: float = 0.0
    num_kv_tokens: int | None = None
    max_chunk_tokens: int | None = None
    bytes_per_token: int = 0
    page_tokens: int = 1
    ack_s: float = 0.0

    def forward(self, requests: Sequence[PrefillRequest], slowdown: float = 1.0) -> ForwardTimes:
        """Return the boundaries of a forward pass; it takes the predicted time."""
        return ForwardTimes.of_layer(self.layer_s(requests, slowdown), self.num_layers)

    def layer_s(self, requests: Sequence[PrefillRequest], slowdown: float = 1.0) -> list[float]:
        """Return the seconds of every operator of one layer, in order."""
        num_pairs = sum(
            num_attention_pairs(r.num_uncached_tokens, r.num_cached_tokens) for r in requests
        )
        attention_s = self.cost.per_attention_pair_s * num_pairs
        dense_s = max(self.cost.predict_s(requests) - attention_s, 0.0)  # rounding
        dense_s *= slowdown / self.num_layers
        attention_s *= slowdown / self.num_layers
        num_tiles = max(math.ceil(attention_s / self.max_tile_s), 1)
        return [
            *(share * dense_s for share in _BEFORE_ATTENTION),
            *[attention_s / num_tiles] * num_tiles,
            *(share * dense_s for share in _AFTER_ATTENTION),
        ]

    def step_s(self, num_requests: int, num_context_tokens: int) -> float:  # noqa: ARG002
        """Return the seconds of a decode step, whatever the context."""
        return self.decode_step_s + num_requests * self.decode_request_s


def chunks_of(
    requests: Sequence[PrefillRequest], max_chunk_tokens: int | None
) -> list[tuple[PrefillRequest, ...]]:
    """Return the forward passes of a batch, each by what it computes.

    A lone long prompt becomes chunks, of which each finds those before it cached. Anything
    else is one forward pass.

    Args:
        requests: Members of the batch.
        max_chunk_tokens: Tokens of a forward pass over one prompt; None for any number.
    """
    head = requests[0]
    if len(requests) > 1 or max_chunk_tokens is None:
        return [tuple(requests)]
    if head.num_uncached_tokens <= max_chunk_tokens:
        return [tuple(requests)]
    chunks: list[tuple[PrefillRequest, ...]] = []
    for start in range(0, head.num_uncached_tokens, max_chunk_tokens):
        num_tokens = min(max_chunk_tokens, head.num_uncached_tokens - start)
        num_cached = head.num_cached_tokens + start
        chunk = replace(head, num_uncached_tokens=num_tokens, num_cached_tokens=num_cached)
        chunks.append((chunk,))
    return chunks
