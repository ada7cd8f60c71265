"""Query tiles of prefill attention, each a plan of FlashInfer's paged wrapper.

A tile's plan is made once per forward pass and serves all its layers. Written against
``BatchPrefillWithPagedKVCacheWrapper`` of flashinfer-python 0.7.2; not measured on a GPU.

What plans share, by that source. ``plan`` leaves its schedule in the wrapper's own int workspace
(8 MB on the device, allocated by the constructor, and as much pinned), so that plans that are to
stand side by side need a wrapper each. The float workspace holds partial sums from the beginning to
the end of one ``run``: wrappers that run one after the other on one stream share it. ``plan``
copies its schedule from the pinned buffer without waiting. A wrapper may therefore be planned again
only when that copy has ended: SGLang's own plan, which reads its row pointers back from the device,
is made right before, and waits for it.

Another forward pass that runs between two tiles plans the same wrappers for its own tiles. Whoever
comes back must plan again, as SGLang does with its own wrappers.

Shapes: query ``[num_tokens, num_heads, dim]``, contiguous; cache a pair of ``[num_slots,
num_kv_heads, dim]``; slot table ``[num_rows, max_positions]`` int32. Dtypes: FlashInfer's. Error:
that of FlashInfer's kernel on these rows; its schedule depends on the tile, so tiles agree with the
whole within rounding. Tiles do not depend on where a prefill was stopped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from sglang_flowprefill.kernels.cpu.prefill_attention import NewTokens, plan_prefill

ROWS_MULTIPLE: Final = 1024
"""Rows of a tile: on an H200 torch's flash kernel took as long for 640 queries as for 1,024."""

ALL_POSITIONS: Final = -1
"""Window of attention that has none."""


class PagedWrapper(Protocol):
    """What is used of ``BatchPrefillWithPagedKVCacheWrapper``."""

    def plan(  # noqa: PLR0917 (FlashInfer's signature)
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        **settings: Any,
    ) -> None:
        """Prepare for these rows of query and cache."""

    def forward(
        self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor], **settings: Any
    ) -> torch.Tensor:
        """Attend as planned."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What all layers have in common.

    Attributes:
        num_heads: Of the query.
        num_kv_heads: Of the cache.
        head_dim: Of both.
        query_dtype: Of the query.
        kv_dtype: Of the cache.
        windows: A query sees this many positions before its own; one entry for each kind of layer.
        fixed_split_size: Keys that FlashInfer sums at a time, for results that no batch changes.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_dtype: torch.dtype
    kv_dtype: torch.dtype
    windows: tuple[int, ...] = (ALL_POSITIONS,)
    fixed_split_size: int | None = None


class PrefillTiles:
    """The tiles of the forward pass that runs now.

    Args:
        make_wrapper: Returns a new wrapper; all share one float workspace. Wrappers are kept: there
            are as many, for each window, as the longest forward pass has had tiles.
        shape: Of the model.

    Attributes:
        windows: Of the layers that tiles are planned for.
    """

    def __init__(self, make_wrapper: Callable[[], PagedWrapper], shape: AttentionShape) -> None:
        self._make_wrapper = make_wrapper
        self._shape = shape
        self.windows = shape.windows
        self._wrappers: Mapping[int, list[PagedWrapper]] = {w: [] for w in shape.windows}
        self._rows: list[slice] = []

    @property
    def num_tiles(self) -> int:
        """Tiles planned; 0 where one would be enough."""
        return len(self._rows)

    def drop(self) -> None:
        """Forget all plans."""
        self._rows = []

    def plan(
        self, sequences: Sequence[NewTokens], table: torch.Tensor, max_tile_pairs: float
    ) -> None:
        """Divide a batch into tiles, and plan each; what was planned before is forgotten.

        Args:
            sequences: In the order of their query rows.
            table: ``[num_rows, max_positions]`` int32, on the device.
            max_tile_pairs: Query-key pairs (of one head) of a tile.
        """
        self.drop()
        tiles = [
            tile.tolist() for tile in plan_prefill(sequences, max_tile_pairs, ROWS_MULTIPLE).tiles
        ]
        if len(tiles) < 2:
            return
        for window, wrappers in self._wrappers.items():
            while len(wrappers) < len(tiles):
                wrappers.append(self._make_wrapper())
            for wrapper, pieces in zip(wrappers, tiles, strict=False):
                self._plan_tile(wrapper, pieces, table, window)
        self._rows = [slice(pieces[0][1], pieces[-1][1] + pieces[-1][2]) for pieces in tiles]

    def attend(
        self,
        query: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        output: torch.Tensor,
        *,
        window: int,
        reach: Callable[[], None],
        **settings: Any,
    ) -> None:
        """Attend in one layer, tile by tile.

        Args:
            query: Rows of the whole batch.
            cache: Keys and values of the layer, the new tokens' among them.
            output: Same shape as ``query``; written in place.
            window: Of the layer, one of the shape's.
            reach: Called between two tiles; a checkpoint. Plans are looked up again after it.
            settings: Of the layer, for the wrapper's ``forward``.
        """
        for index in range(self.num_tiles):
            if index:
                reach()
            rows = self._rows[index]
            output[rows] = self._wrappers[window][index].forward(
                query[rows], cache, causal=True, window_left=window, **settings
            )

    def _plan_tile(
        self, wrapper: PagedWrapper, pieces: list[list[int]], table: torch.Tensor, window: int
    ) -> None:
        """Plan one tile: pieces of sequences, each with the keys up to its own end."""
        shape = self._shape
        num_keys = [position + num_rows for _, _, num_rows, position in pieces]
        slots = [table[row, :n] for (row, *_), n in zip(pieces, num_keys, strict=True)]
        wrapper.plan(
            _pointers(num_rows for _, _, num_rows, _ in pieces),
            _pointers(num_keys),
            slots[0] if len(slots) == 1 else torch.cat(slots),
            torch.ones(len(pieces), dtype=torch.int32),
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            1,
            causal=True,
            window_left=window,
            q_data_type=shape.query_dtype,
            kv_data_type=shape.kv_dtype,
            fixed_split_size=shape.fixed_split_size,
        )


def _pointers(lengths: Any) -> torch.Tensor:
    """Return ``[n + 1]`` int32 on the host: where each of n begins, and where the last ends."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
