"""One instance's hardware as the simulated engine sees it: operators, boundaries, memory.

The cost model says what a pass takes; here it is divided into the operators of the model at hand,
by what each of them computes and moves. The longest operator decides how long an urgent request
waits, so shares are of the model and the GPU and no constants.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sglang_flowprefill.core import PrefillRequest
from sglang_flowprefill.core.predictor import num_attention_pairs
from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.sim.costs.pass_cost import PassCost
from sglang_flowprefill.sim.forward_times import ForwardTimes
from sglang_flowprefill.sim.gpus import Gpu
from sglang_flowprefill.sim.shapes import ModelShape

ACK_S = 61e-6
"""From a boundary to an idle device: median of 40 stops on an H200 (docs: measure on a GPU)."""
LAUNCH_S = 5e-6
"""No operator of an eager forward pass is shorter than its launch. Assumed."""
ACTIVATION_BYTES = 2e9
"""GPU memory that is neither weights nor KV. Assumed."""
MEMORY_FRACTION = 0.88

_BOUNDARY_AFTER = {
    "operator": None,  # every one
    "half-layer": {"output", "down", "experts"},
    "layer": {"down", "experts"},
    "chunk": set[str](),
    "off": set[str](),
}
GRANULARITIES = tuple(_BOUNDARY_AFTER)


@dataclass(frozen=True, slots=True)
class OperatorShare:
    """One operator of a layer.

    Attributes:
        name: Of the operator.
        share: Of the layer's time without attention; 0 for attention itself.
    """

    name: str
    share: float


def operator_shares(shape: ModelShape, gpu: Gpu, tp: int) -> tuple[OperatorShare, ...]:
    """Return the operators of a layer in order, by what each computes and moves.

    A product counts its operations, a norm the bytes that it reads and writes, and the two
    all-reduces of tensor parallelism are part of the products before them.
    """
    norm_s = 4 * 2 * shape.hidden / gpu.memory_bytes_per_s
    reduce_s = 2 * 2 * shape.hidden * (tp - 1) / tp / gpu.link_bytes_per_s if tp > 1 else 0.0
    product_s = {
        product.name: 2 * product.num_weights / (tp * 0.65 * gpu.flop_per_s)
        for product in shape.products
    }
    last = shape.products[-1].name
    product_s["output"] += reduce_s
    product_s[last] += reduce_s
    seconds = [("norm", norm_s), ("qkv", product_s["qkv"]), ("attention", 0.0)]
    seconds += [("output", product_s["output"]), ("norm", norm_s)]
    seconds += [(product.name, product_s[product.name]) for product in shape.products[2:]]
    total_s = sum(value for _, value in seconds)
    return tuple(OperatorShare(name, value / total_s) for name, value in seconds)


def kv_capacity_tokens(shape: ModelShape, gpu: Gpu, tp: int, memory_fraction: float) -> int:
    """Return the KV slots that fit beside the weights.

    Raises:
        PlanError: Not even the weights fit.
    """
    for_kv = memory_fraction * tp * gpu.memory_bytes - shape.weight_bytes - tp * ACTIVATION_BYTES
    num_tokens = int(for_kv / shape.kv_bytes_per_token)
    if num_tokens < 1:
        raise PlanError(
            f"{shape.name} does not fit: its weights take {shape.weight_bytes / 1e9:.0f} GB, and "
            f"{tp} x {gpu.name} have {tp * gpu.memory_bytes / 1e9:.0f} GB of which "
            f"{memory_fraction:.0%} may be used; raise --tp"
        )
    return num_tokens


@dataclass(frozen=True, slots=True)
class Device:
    """A machine for ``SimulatedEngine``, made of a cost model and the model's operators.

    Attributes:
        cost: What passes take.
        operators: Of a layer.
        num_layers: Layers.
        granularity: Where a prefill may be suspended; as the server's setting.
        num_in_flight: Launched operators that are unfinished at any time.
        max_operator_s: A longer operator runs in equal tiles; infinity for none.
        tile_tax: How much longer an operator in tiles takes.
        sync_s: Lost at each boundary where the device is synchronised; 0 with operators in flight.
        launch_s: No operator is shorter.
        num_kv_tokens: KV slots; None for any number.
        page_tokens: KV slots of a page.
        max_chunk_tokens: Tokens of a forward pass over one prompt; None for any number.
        bytes_per_token: Activations of a suspended prefill, per token.
        ack_s: From a boundary to an idle device.
    """

    cost: PassCost
    operators: Sequence[OperatorShare]
    num_layers: int
    granularity: str = "operator"
    num_in_flight: int = 3
    max_operator_s: float = math.inf
    tile_tax: float = 0.05
    sync_s: float = 0.0
    launch_s: float = LAUNCH_S
    num_kv_tokens: int | None = None
    page_tokens: int = 1
    max_chunk_tokens: int | None = None
    bytes_per_token: int = 0
    ack_s: float = ACK_S
    _memo: dict[tuple[int, float, float], ForwardTimes] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def forward(self, requests: Sequence[PrefillRequest], slowdown: float) -> ForwardTimes:
        """Return the boundaries of a forward pass."""
        num_tokens, num_pairs = 0, 0.0
        for request in requests:
            num_tokens += request.num_uncached_tokens
            num_pairs += num_attention_pairs(request.num_uncached_tokens, request.num_cached_tokens)
        key = (num_tokens, num_pairs, slowdown)
        times = self._memo.get(key)
        if times is None:
            if len(self._memo) > 100_000:
                self._memo.clear()
            times = self._memo[key] = self._times(num_tokens, num_pairs, len(requests), slowdown)
        return times

    def step_s(self, num_requests: int, num_context_tokens: int) -> float:
        """Return the seconds of a decode step."""
        return self.cost.decode_s(num_requests, num_context_tokens)

    def _times(
        self, num_tokens: int, num_pairs: float, num_requests: int, slowdown: float
    ) -> ForwardTimes:
        total_s, attention_s = self.cost.prefill(num_tokens, num_pairs, num_requests)
        per_layer = slowdown / self.num_layers
        dense_s, attention_s = (total_s - attention_s) * per_layer, attention_s * per_layer
        boundaries = _BOUNDARY_AFTER[self.granularity]
        pieces: list[float] = []
        since_s = 0.0
        for operator in self.operators:
            seconds = operator.share * dense_s if operator.share else attention_s
            seconds = max(seconds, self.launch_s)
            if boundaries is None:
                pieces += self._tiles(seconds)
                continue
            since_s += seconds
            if operator.name in boundaries:
                pieces.append(since_s + self.sync_s)
                since_s = 0.0
        if boundaries is not None and not boundaries:
            return ForwardTimes([since_s * self.num_layers])
        return ForwardTimes.of_layer(pieces, self.num_layers, num_in_flight=self.num_in_flight)

    def _tiles(self, seconds: float) -> list[float]:
        num_tiles = math.ceil(seconds / self.max_operator_s) if seconds > self.max_operator_s else 1
        if num_tiles == 1:
            return [seconds + self.sync_s]
        return [seconds * (1.0 + self.tile_tax) / num_tiles + self.sync_s] * num_tiles
