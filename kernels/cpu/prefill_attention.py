"""Prefill attention of one sequence over a paged KV cache, with a boundary between tiles.

Two implementations of one contract: compiled (bfloat16, ``native.py``) and plain torch (any
dtype, ``tiled_attention.py``). Both compute each query row by itself, so that where the tiles lie
and what runs between them changes no result.
"""

from collections.abc import Callable
from typing import Final

import torch
from sglang_flowprefill.kernels.cpu.native import DIM_MULTIPLE, NativeKernels, load_native
from sglang_flowprefill.kernels.cpu.tiled_attention import tiled_causal_attention

NATIVE_TILE_PAIRS: Final = 1 << 20
"""Query-key pairs per head of a compiled tile: some 10 ms for 9 heads of 64 on two cores."""

_ROWS_MULTIPLE: Final = 32


def prefill_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    output: torch.Tensor,
    *,
    scale: float,
    sliding_window_size: int | None = None,
    reach: Callable[[], None],
) -> None:
    """Attend from the last ``num_queries`` positions of a sequence to all positions before.

    Args:
        query: ``[num_queries, num_heads, dim]``, contiguous within a token.
        key_cache: ``[num_slots, num_kv_heads, dim]``.
        value_cache: ``[num_slots, num_kv_heads, value_dim]``.
        slots: ``[num_keys]`` slot of every position of the sequence.
        output: ``[num_queries, num_heads, value_dim]``; written in place, never read.
        scale: Factor on the scores.
        sliding_window_size: A query sees this many positions before its own; None: all.
        reach: Called between two tiles; a checkpoint.
    """
    native = load_native() if _suits_native(query, key_cache, value_cache) else None
    if native is None:
        tiled_causal_attention(
            query.movedim(0, 1),
            key_cache[slots].to(query.dtype).movedim(0, 1),
            value_cache[slots].to(query.dtype).movedim(0, 1),
            output,
            scale=scale,
            sliding_window_size=sliding_window_size,
            reach=reach,
        )
        return
    _native_tiles(
        native,
        query,
        native.pack_kv(key_cache, value_cache, slots),
        output,
        num_kv_heads=key_cache.shape[1],
        num_keys=slots.shape[0],
        scale=scale,
        window_size=sliding_window_size,
        reach=reach,
    )


def _suits_native(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    dim = query.shape[2]
    return (
        query.dtype == keys.dtype == values.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and dim % DIM_MULTIPLE == 0
        and values.shape[2] == dim
        and query.stride()[1:] == keys.stride()[1:] == values.stride()[1:] == (dim, 1)
    )


def _native_tiles(
    native: NativeKernels,
    query: torch.Tensor,
    packed: tuple[torch.Tensor, torch.Tensor],
    output: torch.Tensor,
    *,
    num_kv_heads: int,
    num_keys: int,
    scale: float,
    window_size: int | None,
    reach: Callable[[], None],
) -> None:
    num_queries = query.shape[0]
    num_rows = max(_ROWS_MULTIPLE, NATIVE_TILE_PAIRS // num_keys // _ROWS_MULTIPLE * _ROWS_MULTIPLE)
    for start in range(0, num_queries, num_rows):
        if start:
            reach()
        stop = min(start + num_rows, num_queries)
        native.attend(
            query[start:stop],
            packed,
            output[start:stop],
            num_kv_heads=num_kv_heads,
            first_position=num_keys - num_queries + start,
            num_keys=num_keys,
            scale=scale,
            window_size=window_size,
        )
