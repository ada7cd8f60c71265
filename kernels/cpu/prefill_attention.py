"""Prefill attention of one sequence over a paged KV cache, with a boundary between tiles.

Two implementations of one contract: compiled (bfloat16, ``native.py``) and plain torch (any
dtype, ``tiled_attention.py``). Both compute each query row by itself, so that where the tiles lie
and what runs between them changes no result.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
from sglang_flowprefill.kernels.cpu.native import DIM_MULTIPLE, NativeKernels, load_native
from sglang_flowprefill.kernels.cpu.tiled_attention import tiled_causal_attention

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
    max_tile_pairs: float,
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
        max_tile_pairs: Query-key pairs (of one head) above which the call runs in tiles of about
            as many; infinity: one call.
        reach: Called between two tiles, and once the keys are gathered; a checkpoint.
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
            max_tile_pairs=max_tile_pairs,
            reach=reach,
        )
        return
    packed = native.pack_kv(key_cache, value_cache, slots)
    if slots.shape[0] > max_tile_pairs / _ROWS_MULTIPLE:
        reach()  # so many keys that gathering them took its time
    _native_tiles(
        native,
        query,
        packed,
        output,
        num_kv_heads=key_cache.shape[1],
        num_keys=slots.shape[0],
        scale=scale,
        window_size=sliding_window_size,
        max_tile_pairs=max_tile_pairs,
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
    max_tile_pairs: float,
    reach: Callable[[], None],
) -> None:
    num_queries = query.shape[0]
    first_position = num_keys - num_queries
    start = 0
    while start < num_queries:
        if start:
            reach()
        stop = min(start + _tile_rows(first_position + start, max_tile_pairs), num_queries)
        native.attend(
            query[start:stop],
            packed,
            output[start:stop],
            num_kv_heads=num_kv_heads,
            first_position=first_position + start,
            num_keys=num_keys,
            scale=scale,
            window_size=window_size,
        )
        start = stop


def _tile_rows(position: int, max_pairs: float) -> int:
    """Return the rows from this position on that see at most so many keys together.

    ``rows * (position + rows) = max_pairs``, solved for rows.
    """
    if math.isinf(max_pairs):
        return 1 << 62
    rows = (math.sqrt(position * position + 4.0 * max_pairs) - position) / 2.0
    return max(int(rows) // _ROWS_MULTIPLE, 1) * _ROWS_MULTIPLE
