"""Causal prefill attention over a paged KV cache, in tiles, with a boundary between tiles.

The attention of one layer over an 8,000-token prompt takes over half a second on two CPU cores:
as one operator it could not be interrupted for that long. Here it runs as query tiles of
``QUERY_TILE`` rows against the keys up to the tile's end, and a tile over long context is split
further by KV head group. Prompts of up to some 1,400 tokens are one tile.

Numerics: torch's CPU attention kernel walks the keys in blocks of 512 from the first key on, and
computes each query row and head by itself. Tiles that are multiples of 512 rows keep every block
edge where the untiled call has it, so a whole-prompt prefill is bitwise equal to it (tested, in
float32 and bfloat16), but for the last one to three rows: where the last tile leaves a block of so
few rows, the matrix library multiplies it in another order, and they differ by rounding. Only the
rows that are asked for are computed: a chunk after a cached prefix does not pay for the prefix's
queries.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch.nn.functional import scaled_dot_product_attention

QUERY_TILE = 512
"""Rows of a query tile; a multiple of the 512-key blocks of torch's CPU attention kernel."""


def tiled_causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    *,
    scale: float,
    sliding_window_size: int | None = None,
    max_tile_pairs: float,
    reach: Callable[[], None],
) -> None:
    """Attend from the last ``num_queries`` positions of one sequence to all positions before.

    Args:
        query: ``[num_heads, num_queries, head_dim]``, rows of positions
            ``num_keys - num_queries`` onwards.
        key: ``[num_kv_heads, num_keys, head_dim]``, contiguous per head; ``num_heads`` is a
            multiple of ``num_kv_heads``.
        value: ``[num_kv_heads, num_keys, value_dim]``.
        output: ``[num_queries, num_heads, value_dim]``; written in place, never read.
        scale: Factor on the scores.
        sliding_window_size: A query sees this many positions before its own; None: all.
        max_tile_pairs: Query-key pairs (of one head) above which a tile is split by KV head group.
        reach: Called between two tiles; a checkpoint.
    """
    num_queries, num_keys = query.shape[1], key.shape[1]
    first_position = num_keys - num_queries
    is_short = first_position == 0 and num_queries * num_keys <= max_tile_pairs
    num_rows = num_queries if is_short else QUERY_TILE
    is_first = True
    for start in range(0, num_queries, num_rows):
        stop = min(start + num_rows, num_queries)
        num_visible = first_position + stop
        mask = _tile_mask(first_position + start, num_visible, sliding_window_size, query)
        for heads, kv_heads in _head_groups(
            query, key, (stop - start) * num_visible <= max_tile_pairs
        ):
            if not is_first:
                reach()
            is_first = False
            tile = scaled_dot_product_attention(
                query[None, heads, start:stop],
                key[None, kv_heads, :num_visible],
                value[None, kv_heads, :num_visible],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=query.shape[0] != key.shape[0],
            )
            output[start:stop, heads] = tile[0].movedim(0, 1)


def _head_groups(
    query: torch.Tensor, key: torch.Tensor, is_small: bool
) -> list[tuple[slice, slice]]:
    """Split the heads if the tile is large: one group per KV head, else all together."""
    num_heads, num_kv_heads = query.shape[0], key.shape[0]
    if is_small:
        return [(slice(0, num_heads), slice(0, num_kv_heads))]
    group = num_heads // num_kv_heads
    return [(slice(k * group, (k + 1) * group), slice(k, k + 1)) for k in range(num_kv_heads)]


def _tile_mask(
    first_position: int,
    num_visible: int,
    sliding_window_size: int | None,
    like: torch.Tensor,
) -> torch.Tensor | None:
    """Return the additive mask ``[rows, num_visible]`` of a tile, None where causal suffices.

    All causal tiles are windows of one band, so that no layer builds a mask of its own:
    ``band[i, c]`` hides ``c > i + reach``, and shifting the columns by ``reach - first_position``
    hides ``column > first_position + i``.
    """
    num_rows = num_visible - first_position
    if sliding_window_size is not None:
        return _sliding_window_mask(first_position, num_visible, sliding_window_size, like)
    if first_position == 0:
        return None
    reach = 1 << (first_position - 1).bit_length()
    shift = reach - first_position
    return _causal_band(reach, like.dtype, like.device)[:num_rows, shift : shift + num_visible]


@lru_cache(maxsize=8)
def _causal_band(reach: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return ``[QUERY_TILE, reach + QUERY_TILE]``: -inf where column > row + reach, else 0."""
    band = torch.full((QUERY_TILE, reach + QUERY_TILE), float("-inf"), dtype=dtype, device=device)
    return band.triu_(diagonal=reach + 1)


def _sliding_window_mask(
    first_position: int, num_visible: int, window_size: int, like: torch.Tensor
) -> torch.Tensor:
    rows = torch.arange(first_position, num_visible, device=like.device)[:, None]
    columns = torch.arange(num_visible, device=like.device)
    hidden = (columns > rows) | (columns < rows - window_size)
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, float("-inf"))
