"""Prefill attention of a batch over a paged KV cache, with a boundary between tiles.

Two implementations of one contract: compiled (bfloat16 and float32, ``native.py``) and plain torch
(any dtype, ``tiled_attention.py``). Both compute each query row by itself, so that where the tiles
lie and what runs between them changes no result. A tile is what may run without a boundary inside:
part of a long sequence, or several short ones in one call.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from sglang_flowprefill.kernels.cpu.native import (
    NativeKernels,
    PagedKv,
    can_attend,
    load_native,
)
from sglang_flowprefill.kernels.cpu.tiled_attention import tiled_causal_attention

_ROWS_MULTIPLE: Final = 32

Piece = tuple[int, int, int, int]
"""Row of the slot table, first row of the query, number of rows, position of the first."""


@dataclass(frozen=True, slots=True)
class NewTokens:
    """The last positions of one sequence: those that a prefill computes.

    Attributes:
        table_row: Row of the slot table.
        num_queries: How many they are.
        num_keys: Positions of the sequence, these included.
    """

    table_row: int
    num_queries: int
    num_keys: int


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """How one batch is attended to: the same in every layer.

    Attributes:
        sequences: Their rows of the query follow one another.
        tiles: Of the compiled kernel: ``[num_pieces, 4]`` int64 each, a ``Piece`` a row.
        max_tile_pairs: What they were made for.
    """

    sequences: tuple[NewTokens, ...]
    tiles: tuple[torch.Tensor, ...]
    max_tile_pairs: float


def plan_prefill(
    sequences: Sequence[NewTokens], max_tile_pairs: float, rows_multiple: int = _ROWS_MULTIPLE
) -> PrefillPlan:
    """Divide a batch into tiles.

    Args:
        sequences: In the order of their query rows.
        max_tile_pairs: Query-key pairs (of one head) of a tile; infinity: one tile.
        rows_multiple: Where a long sequence is cut, and the shortest tile of it.
    """
    tiles: list[list[Piece]] = []
    num_left = 0.0  # pairs that the last tile has room for
    first_row = 0
    for sequence in sequences:
        position = sequence.num_keys - sequence.num_queries
        while position < sequence.num_keys:
            num_rows = sequence.num_keys - position
            num_pairs = num_rows * float(sequence.num_keys)
            if num_pairs > num_left:
                tiles.append([])
                num_left = max_tile_pairs
            if num_pairs > max_tile_pairs:
                num_rows = min(num_rows, _tile_rows(position, max_tile_pairs, rows_multiple))
                num_pairs = num_rows * float(position + num_rows)
            tiles[-1].append((sequence.table_row, first_row, num_rows, position))
            num_left -= num_pairs
            first_row, position = first_row + num_rows, position + num_rows
    return PrefillPlan(
        tuple(sequences),
        tuple(torch.tensor(tile, dtype=torch.int64) for tile in tiles),
        max_tile_pairs,
    )


def prefill_attention(
    query: torch.Tensor,
    cache: PagedKv,
    plan: PrefillPlan,
    output: torch.Tensor,
    *,
    scale: float,
    sliding_window_size: int | None = None,
    reach: Callable[[], None],
) -> None:
    """Attend from the new tokens of every sequence to all positions before.

    Args:
        query: ``[num_tokens, num_heads, dim]``, contiguous within a token.
        cache: Keys, values and slot table.
        plan: From ``plan_prefill``.
        output: ``[num_tokens, num_heads, value_dim]``; written in place, never read.
        scale: Factor on the scores.
        sliding_window_size: A query sees this many positions before its own; None: all.
        reach: Called between two tiles, and in torch code between two sequences; a checkpoint.
    """
    native = load_native() if can_attend(query, cache) else None
    if native is None:
        _attend_in_torch(
            query,
            cache,
            plan,
            output,
            scale=scale,
            sliding_window_size=sliding_window_size,
            reach=reach,
        )
        return
    attend_in_tiles(
        native,
        query,
        cache,
        output,
        plan=plan,
        scale=scale,
        window_size=sliding_window_size,
        reach=reach,
    )


def attend_in_tiles(
    native: NativeKernels,
    query: torch.Tensor,
    cache: PagedKv,
    output: torch.Tensor,
    *,
    plan: PrefillPlan,
    scale: float,
    window_size: int | None,
    reach: Callable[[], None],
) -> None:
    """Do what ``prefill_attention`` does, compiled, for tensors that ``can_attend``."""
    for index, pieces in enumerate(plan.tiles):
        if index:
            reach()
        native.prefill_attention(query, cache, pieces, output, scale=scale, window_size=window_size)


def _attend_in_torch(
    query: torch.Tensor,
    cache: PagedKv,
    plan: PrefillPlan,
    output: torch.Tensor,
    *,
    scale: float,
    sliding_window_size: int | None,
    reach: Callable[[], None],
) -> None:
    start = 0
    for sequence in plan.sequences:
        if start:
            reach()
        stop = start + sequence.num_queries
        slots = cache.table[sequence.table_row, : sequence.num_keys]
        tiled_causal_attention(
            query[start:stop].movedim(0, 1),
            cache.keys[slots].to(query.dtype).movedim(0, 1),
            cache.values[slots].to(query.dtype).movedim(0, 1),
            output[start:stop],
            scale=scale,
            sliding_window_size=sliding_window_size,
            max_tile_pairs=plan.max_tile_pairs,
            reach=reach,
        )
        start = stop


def _tile_rows(position: int, max_pairs: float, multiple: int) -> int:
    """Return the rows from this position on that see at most so many keys together.

    ``rows * (position + rows) = max_pairs``, solved for rows.
    """
    if math.isinf(max_pairs):
        return 1 << 62
    rows = (math.sqrt(position * position + 4.0 * max_pairs) - position) / 2.0
    return max(int(rows) // multiple, 1) * multiple
