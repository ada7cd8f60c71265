"""A prefill of Llama's shape: plain modules, random weights, one sequence, no cache.

Built like SGLang's models where boundaries are concerned: norms add the residual, gate and up are
one product, every operator is a module that is called.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

EPSILON = 1e-5
_ROPE_BASE = 500_000.0
QUERY_TILE_MULTIPLE = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model."""

    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int


LLAMA_8B_LAYER = Shape(
    num_layers=8,
    hidden=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate=14336,
    vocabulary=128_256,
)
"""Llama-3.1-8B with 8 of its 32 layers: waits depend on a layer's operators, not on how many."""


def torch_add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normed sum, and the sum."""
    total = residual + x
    return rms_norm(total, (total.shape[1],), weight, EPSILON), total


def torch_silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return ``silu(gate) * up``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


@dataclass(frozen=True, slots=True)
class RowOps:
    """Row-wise functions that a fused kernel may take over.

    Attributes:
        add_norm: Sum and its norm; may work in place.
        silu_and_mul: The activation.
    """

    add_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]] = torch_add_norm
    silu_and_mul: Callable[[torch.Tensor], torch.Tensor] = torch_silu_and_mul


class Norm(nn.Module):
    """Residual add and RMSNorm."""

    def __init__(self, width: int, ops: RowOps) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._add_norm = ops.add_norm

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the normed sum, and the sum."""
        return self._add_norm(x, residual, self.weight)


class Attention(nn.Module):
    """Causal attention of one sequence, whole or in query tiles.

    Attributes:
        max_tile_pairs: Query-key pairs above which it runs in tiles.
        query_multiple: Tiles are multiples of so many queries.
        reach: Called between two tiles.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._shape = shape
        self.max_tile_pairs = math.inf
        self.query_multiple = QUERY_TILE_MULTIPLE
        self.reach: Callable[[], None] = lambda: None

    def forward(self, qkv: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return ``[num_tokens, num_heads * head_dim]``."""
        shape, num_tokens = self._shape, qkv.shape[0]
        heads = qkv.view(num_tokens, -1, shape.head_dim)
        queries, keys, values = heads.split(
            [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1
        )
        queries, keys = rotate(queries, *rope), rotate(keys, *rope)
        stops = query_tile_stops(num_tokens, self.max_tile_pairs, self.query_multiple)
        if len(stops) == 1:
            return causal_attention(queries, keys, values).flatten(1)
        output = torch.empty_like(queries)
        start = 0
        for stop in stops:
            if start:
                self.reach()
            output[start:stop] = causal_attention(queries[start:stop], keys[:stop], values[:stop])
            start = stop
        return output.flatten(1)


class Mlp(nn.Module):
    """Gate, up and down."""

    def __init__(self, shape: Shape, ops: RowOps) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        self._silu_and_mul = ops.silu_and_mul

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[num_tokens, hidden]``."""
        return self.down_proj(self._silu_and_mul(self.gate_up_proj(x)))


class Layer(nn.Module):
    """Seven operators."""

    def __init__(self, shape: Shape, ops: RowOps) -> None:
        super().__init__()
        attention_width = shape.num_heads * shape.head_dim
        qkv_width = attention_width + 2 * shape.num_kv_heads * shape.head_dim
        self.input_layernorm = Norm(shape.hidden, ops)
        self.qkv_proj = nn.Linear(shape.hidden, qkv_width, bias=False)
        self.attn = Attention(shape)
        self.o_proj = nn.Linear(attention_width, shape.hidden, bias=False)
        self.post_attention_layernorm = Norm(shape.hidden, ops)
        self.mlp = Mlp(shape, ops)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor, rope: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the next layer's norm adds, and the residual."""
        x, residual = self.input_layernorm(x, residual)
        x = self.o_proj(self.attn(self.qkv_proj(x), rope))
        x, residual = self.post_attention_layernorm(x, residual)
        return self.mlp(x), residual


class Llama(nn.Module):
    """Embedding, layers, norm and the last token's logits."""

    def __init__(self, shape: Shape, ops: RowOps | None = None) -> None:
        super().__init__()
        ops = ops or RowOps()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape, ops) for _ in range(shape.num_layers))
        self.norm = Norm(shape.hidden, ops)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[vocabulary]`` of the last of ``[num_tokens]`` tokens."""
        x = self.embed_tokens(token_ids)
        rope = rope_tables(token_ids.shape[0], self.shape.head_dim, x)
        residual = torch.zeros_like(x)
        for layer in self.layers:
            x, residual = layer(x, residual, rope)
        x, _ = self.norm(x, residual)
        return self.lm_head(x[-1:])[0]


def random_llama(
    shape: Shape, device: torch.device, dtype: torch.dtype, ops: RowOps | None = None
) -> Llama:
    """Return a model with small random weights, made on the device."""
    with torch.device(device):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = Llama(shape, ops)
        finally:
            torch.set_default_dtype(previous)
    return model.requires_grad_(requires_grad=False).eval()


def rope_tables(
    num_tokens: int, head_dim: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine ``[num_tokens, 1, head_dim / 2]`` of positions from 0."""
    exponents = torch.arange(0, head_dim, 2, device=like.device) / head_dim
    angles = torch.outer(
        torch.arange(num_tokens, device=like.device).float(), _ROPE_BASE**-exponents
    )[:, None]
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of each head by its position."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def causal_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Attend from the last ``num_queries`` positions to all before; ``[tokens, heads, dim]``.

    On CUDA in 16 bit the flash kernel is called by name: it aligns the mask to the last key, and
    whole and tiled attention are then the same kernel.
    """
    q, k, v = (x.movedim(0, 1)[None] for x in (queries, keys, values))
    if q.is_cuda and q.dtype != torch.float32:
        result = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal=True)[0]
    else:
        num_queries, num_keys = q.shape[2], k.shape[2]
        seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device)
        seen = seen.tril(num_keys - num_queries)
        result = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    return result[0].movedim(0, 1)


def query_tile_stops(
    num_tokens: int, max_pairs: float, multiple: int = QUERY_TILE_MULTIPLE
) -> list[int]:
    """Divide the queries of a causal attention into tiles of about equally many pairs.

    >>> query_tile_stops(1024, 1e9)
    [1024]
    >>> query_tile_stops(1024, 524_288 / 4)
    [512, 768, 896, 1024]
    """
    num_tiles = max(math.ceil(num_tokens**2 / 2 / max_pairs), 1)
    stops = {num_tokens}
    for i in range(1, num_tiles):
        exact = num_tokens * math.sqrt(i / num_tiles)
        stops.add(max(round(exact / multiple), 1) * multiple)
    return sorted(stop for stop in stops if stop <= num_tokens)
