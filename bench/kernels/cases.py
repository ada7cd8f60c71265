"""The kernels to measure, at the sizes of one model, with the torch code that they replace."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import torch
from sglang_flowprefill.kernels.cpu.native import NativeKernels, PagedKv
from sglang_flowprefill.kernels.cpu.packed_linear import can_pack, pack_weight, packed_linear
from sglang_flowprefill.kernels.cpu.prefill_attention import NewTokens, plan_prefill
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from bench.kernels.model_shape import ModelShape

_ELEMENT_BYTES = 2  # bfloat16


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size.

    Attributes:
        name: Kernel and size.
        family: What it belongs to in a prefill: linear, attention, norm, rope, activation, kv.
        flops: Floating-point operations of one call.
        num_bytes: Bytes that one call must read and write at least once.
        run: Calls the kernel.
        reference: Calls the torch code; None where it would be too slow or is the same.
    """

    name: str
    family: str
    flops: float
    num_bytes: float
    run: Callable[[], object]
    reference: Callable[[], object] | None = None


def kernel_cases(native: NativeKernels, shape: ModelShape) -> Iterator[Case]:
    """Yield every kernel at a short and a long size."""
    for num_tokens in (1, 32, 512, 2048):
        yield from linear_cases(shape, num_tokens)
    for num_queries, num_keys in ((32, 32), (512, 512), (2048, 2048), (8000, 8000), (256, 7256)):
        yield prefill_case(native, shape, num_queries, num_keys)
    for num_sequences, num_keys in ((1, 100), (8, 300), (1, 8000), (8, 2000)):
        yield decode_case(native, shape, num_sequences, num_keys)
    for num_tokens in (32, 2048):
        yield from row_wise_cases(native, shape, num_tokens)


def linear_cases(shape: ModelShape, num_tokens: int) -> Iterator[Case]:
    """Yield the four products of a block, with weights packed once.

    Calls take the weights of all layers in turn, as a forward pass does: no cache holds them.
    """
    for name, (width_in, width_out) in shape.products.items():
        x = _random(num_tokens, width_in)
        weights = [_random(width_out, width_in) for _ in range(shape.num_layers)]
        if not can_pack(weights[0]):
            return
        packed = cycle([pack_weight(weight) for weight in weights])
        plain = cycle(weights)
        yield Case(
            f"{name} {num_tokens} rows",
            "linear",
            2.0 * num_tokens * width_in * width_out,
            _ELEMENT_BYTES * (x.numel() + width_in * width_out + num_tokens * width_out),
            lambda x=x, packed=packed: packed_linear(x, next(packed)),
            lambda x=x, plain=plain: linear(x, next(plain)),
        )


def prefill_case(native: NativeKernels, shape: ModelShape, num_queries: int, num_keys: int) -> Case:
    """Return attention of the last positions of one sequence, scattered over the cache."""
    cache, query = _cache(shape, 1, num_keys), _query(shape, num_queries)
    plan = plan_prefill([NewTokens(0, num_queries, num_keys)], float("inf"))
    seen = None if num_queries == num_keys else _causal(num_queries, num_keys)
    return Case(
        f"attention {num_queries} of {num_keys}",
        "attention",
        shape.attention_flops(num_queries, num_keys),
        _kv_bytes(shape, num_keys) + 2 * _ELEMENT_BYTES * query.numel(),
        partial(
            native.prefill_attention,
            query,
            cache,
            plan.tiles[0],
            torch.empty_like(query),
            scale=shape.head_dim**-0.5,
        ),
        partial(_torch_attention, query, cache, 0, seen),
    )


def decode_case(
    native: NativeKernels, shape: ModelShape, num_sequences: int, num_keys: int
) -> Case:
    """Return attention of one new position of each sequence."""
    cache, query = _cache(shape, num_sequences, num_keys), _query(shape, num_sequences)

    def reference() -> None:
        for row in range(num_sequences):
            _torch_attention(query[row : row + 1], cache, row, _causal(1, num_keys))

    return Case(
        f"decode {num_sequences} x {num_keys}",
        "decode",
        4.0 * num_sequences * num_keys * shape.num_heads * shape.head_dim,
        num_sequences * _kv_bytes(shape, num_keys) + 2 * _ELEMENT_BYTES * query.numel(),
        partial(
            native.decode_attention,
            query,
            cache,
            torch.empty_like(query),
            table_rows=torch.arange(num_sequences),
            num_keys=torch.full((num_sequences,), num_keys),
            scale=shape.head_dim**-0.5,
        ),
        reference,
    )


def row_wise_cases(native: NativeKernels, shape: ModelShape, num_tokens: int) -> Iterator[Case]:
    """Yield norm, activation, rotary embedding and the writing of keys and values."""
    x, residual = _random(num_tokens, shape.hidden_size), _random(num_tokens, shape.hidden_size)
    weight = _random(shape.hidden_size)
    yield Case(
        f"add + RMSNorm {num_tokens} rows",
        "norm",
        6.0 * x.numel(),
        4.0 * _ELEMENT_BYTES * x.numel(),
        partial(native.add_rms_norm, x, residual, weight, 1e-5, rounds_first=False),
        partial(_torch_norm, x, residual, weight),
    )
    gate_up = _random(num_tokens, 2 * shape.intermediate_size)
    yield Case(
        f"SiLU-and-mul {num_tokens} rows",
        "activation",
        20.0 * gate_up.numel() / 2,
        1.5 * _ELEMENT_BYTES * gate_up.numel(),
        partial(native.silu_and_mul, gate_up),
        partial(_torch_silu, gate_up),
    )
    query = _random(num_tokens, shape.num_heads * shape.head_dim)
    key = _random(num_tokens, shape.num_kv_heads * shape.head_dim)
    cos_sin, positions = _random(num_tokens, shape.head_dim), torch.arange(num_tokens)
    yield Case(
        f"RoPE {num_tokens} rows",
        "rope",
        3.0 * (query.numel() + key.numel()),
        2.0 * _ELEMENT_BYTES * (query.numel() + key.numel()),
        partial(native.rope_, positions, query, key, cos_sin),
        partial(_torch_rope, positions, query, key, cos_sin),
    )
    cached = _random(2 * num_tokens, shape.num_kv_heads, shape.head_dim)
    keys = key.view(num_tokens, shape.num_kv_heads, shape.head_dim)
    slots = torch.randperm(2 * num_tokens)[:num_tokens]
    yield Case(
        f"KV write {num_tokens} rows",
        "kv",
        0.0,
        2 * _kv_bytes(shape, num_tokens),
        partial(native.write_kv, keys, keys, cached, cached.clone(), slots),
        partial(_torch_write_kv, keys, keys, cached.clone(), cached.clone(), slots),
    )


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


def _query(shape: ModelShape, num_rows: int) -> torch.Tensor:
    return _random(num_rows, shape.num_heads, shape.head_dim)


def _cache(shape: ModelShape, num_sequences: int, num_keys: int) -> PagedKv:
    num_slots = num_sequences * num_keys
    keys, values = (_random(num_slots, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    return PagedKv(keys, values, torch.randperm(num_slots).int().view(num_sequences, num_keys))


def _kv_bytes(shape: ModelShape, num_keys: int) -> float:
    return 2.0 * _ELEMENT_BYTES * num_keys * shape.num_kv_heads * shape.head_dim


def _causal(num_queries: int, num_keys: int) -> torch.Tensor:
    rows = torch.arange(num_keys - num_queries, num_keys)[:, None]
    return torch.arange(num_keys) <= rows


def _torch_attention(
    query: torch.Tensor, cache: PagedKv, row: int, seen: torch.Tensor | None
) -> torch.Tensor:
    slots = cache.table[row]
    keys, values = (tensor[slots].movedim(0, 1)[None] for tensor in (cache.keys, cache.values))
    return scaled_dot_product_attention(
        query.movedim(0, 1)[None],
        keys,
        values,
        attn_mask=seen,
        is_causal=seen is None,
        enable_gqa=True,
    )


def _torch_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    total = x.float() + residual.float()
    residual.copy_(total)
    normed = total * torch.rsqrt(total.pow(2).mean(dim=-1, keepdim=True) + 1e-5)
    return (normed * weight).bfloat16()


def _torch_silu(x: torch.Tensor) -> torch.Tensor:
    width = x.shape[1] // 2
    return silu(x[:, :width]) * x[:, width:]


def _torch_rope(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, cos_sin: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    cos, sin = cos_sin[positions][:, None].chunk(2, dim=-1)
    rotated = []
    for x in (query, key):
        first, second = x.view(x.shape[0], -1, cos_sin.shape[1]).chunk(2, dim=-1)
        rotated.append(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))
    return tuple(rotated)


def _torch_write_kv(
    keys: torch.Tensor,
    values: torch.Tensor,
    cached_keys: torch.Tensor,
    cached_values: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    cached_keys[slots] = keys
    cached_values[slots] = values
