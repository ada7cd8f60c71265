"""Sub-operator preemption: modules that treat every row alike run in row tiles.

A norm, a linear layer or an MLP over a very long prompt is one long operator, and nothing can
stop it. Its rows (tokens) do not depend on one another, so it may as well run as several calls on
disjoint row ranges, each writing its part of a preallocated output, with a boundary between two.
An MLP in tiles also needs less memory: its wide intermediate exists for one tile at a time.

Numerics: a row's result comes from the same arithmetic on the same inputs. The matrix library may
sum a dot product in another order when the number of rows differs; results then agree within
that rounding and not bitwise. Norms are bitwise equal.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from sglang_flowprefill.executor.checkpoint import no_boundary

ROWS_MULTIPLE: Final = 64
"""Tiles are multiples of this many rows: what matrix kernels divide evenly."""


@dataclass(slots=True, eq=False)
class _Family:
    """Modules of one kind, one in every layer: they take the same time per row."""

    max_rows: int | None = None
    seconds_per_row: list[float] = field(default_factory=list)


class RowTiling:
    """Decides which modules run in tiles, and runs them so.

    Nothing is tiled before ``limit`` is called, nor outside a running cursor.

    Args:
        reach: Checkpoint called with the module's name before every tile but the first.
        is_active: Tells whether a preemptible forward pass is running.
        synchronize: Waits for the device; needed to measure on an asynchronous one.

    Attributes:
        num_tiles: Tiles run so far.
        num_tile_rows: Rows in them.
    """

    def __init__(
        self,
        reach: Callable[[str], None],
        is_active: Callable[[], bool],
        synchronize: Callable[[], None] = lambda: None,
    ) -> None:
        self._reach = reach
        self._is_active = is_active
        self._synchronize = synchronize
        self._families: dict[str, _Family] = {}
        self._is_measuring = False
        self.num_tiles = 0
        self.num_tile_rows = 0

    def add(
        self,
        module: nn.Module,
        name: str,
        family: str,
        *,
        has_boundaries: bool,
        stoppable: Callable[..., Any] | None = None,
    ) -> None:
        """Let a module run in tiles.

        Args:
            module: Changed in place. Its forward takes rows ``[num_rows, ...]`` first, treats
                each by itself, and returns a tensor or a tuple of which some have these rows.
            name: For the checkpoint.
            family: Modules of one family share a measurement.
            has_boundaries: Operators inside it have boundaries of their own, so that none is
                needed between tiles.
            stoppable: Takes the place of the tiles: the whole call, in a form that the device
                can stop by itself.
        """
        shared = self._families.setdefault(family, _Family())
        reach = no_boundary if has_boundaries else partial(self._reach, name)
        module.forward = self._tiled(module.forward, reach, shared, stoppable)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure every call within, instead of tiling it."""
        for family in self._families.values():
            family.seconds_per_row.clear()
        self._is_measuring = True
        try:
            yield
        finally:
            self._is_measuring = False

    @property
    def seconds_per_row(self) -> dict[str, float]:
        """What was measured: the median over the modules of each family."""
        return {
            name: statistics.median(family.seconds_per_row)
            for name, family in self._families.items()
            if family.seconds_per_row
        }

    @property
    def max_whole_rows(self) -> float:
        """Calls with more rows than this are cut or measured somewhere."""
        if self._is_measuring:
            return 0
        limits = (family.max_rows for family in self._families.values())
        return min((limit for limit in limits if limit is not None), default=math.inf)

    def limit(self, seconds_per_row: Mapping[str, float], max_s: float) -> None:
        """Cut calls that would take longer than ``max_s``.

        Args:
            seconds_per_row: By family, as measured; a family without stays whole.
            max_s: Infinity: nothing is cut.
        """
        for name, family in self._families.items():
            row_s = seconds_per_row.get(name, 0.0)
            family.max_rows = rows_within(max_s, row_s) if row_s > 0.0 else None

    def _tiled(
        self,
        forward: Callable[..., Any],
        reach: Callable[[], None],
        family: _Family,
        stoppable: Callable[..., Any] | None,
    ) -> Callable[..., Any]:
        def tiled(*args: Any, **kwargs: Any) -> Any:
            rows = _num_rows(args)
            if self._is_measuring and rows:
                return self._measured(forward, family, rows, args, kwargs)
            max_rows = family.max_rows
            if max_rows is None or rows <= max_rows or not self._is_active():
                return forward(*args, **kwargs)
            if stoppable is not None:
                return stoppable(*args, **kwargs)
            step = tile_rows(rows, max_rows)
            self.num_tiles += math.ceil(rows / step)
            self.num_tile_rows += rows
            return _run_tiles(forward, reach, step, args, kwargs)

        return tiled

    def _measured(
        self,
        forward: Callable[..., Any],
        family: _Family,
        num_rows: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._synchronize()
        start_s = time.perf_counter()
        output = forward(*args, **kwargs)
        self._synchronize()
        if _is_tileable(output):
            family.seconds_per_row.append((time.perf_counter() - start_s) / num_rows)
        return output


def _run_tiles(
    forward: Callable[..., Any],
    reach: Callable[[], None],
    step: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    num_rows = _num_rows(args)
    outputs: _Outputs | None = None
    for start in range(0, num_rows, step):
        if outputs is not None:
            reach()
        stop = min(start + step, num_rows)
        inputs = [_rows_of(value, num_rows, start, stop) for value in args]
        named = {key: _rows_of(value, num_rows, start, stop) for key, value in kwargs.items()}
        pieces = forward(*inputs, **named)
        if outputs is None:
            given = [*zip(args, inputs, strict=True)]
            given += [(kwargs[key], value) for key, value in named.items()]
            outputs = _Outputs(pieces, num_rows, stop - start, given)
        outputs.write(pieces, start, stop)
    assert outputs is not None
    return outputs.whole


class _Outputs:
    """What a tiled call returns: whole tensors, filled tile by tile.

    A module may return one of its inputs, changed in place (fused add and norm does): then the
    whole input is the whole output, and nothing is copied.

    Args:
        pieces: What the first tile returned.
        num_rows: Rows of the whole call.
        num_tile_rows: Rows of the first tile.
        given: Whole and tile of every argument.
    """

    def __init__(
        self, pieces: Any, num_rows: int, num_tile_rows: int, given: list[tuple[Any, Any]]
    ) -> None:
        self._is_tuple = isinstance(pieces, tuple)
        first = pieces if self._is_tuple else (pieces,)
        self._has_rows = [
            isinstance(piece, torch.Tensor) and piece.dim() > 1 and piece.shape[0] == num_tile_rows
            for piece in first
        ]
        self._whole = [
            _whole_of(piece, num_rows, given) if has_rows else piece
            for piece, has_rows in zip(first, self._has_rows, strict=True)
        ]

    def write(self, pieces: Any, start: int, stop: int) -> None:
        """Take over what one tile returned."""
        tile = pieces if self._is_tuple else (pieces,)
        for whole, piece, has_rows in zip(self._whole, tile, self._has_rows, strict=True):
            if has_rows and whole[start:stop].data_ptr() != piece.data_ptr():
                whole[start:stop] = piece

    @property
    def whole(self) -> Any:
        """The value to return."""
        return tuple(self._whole) if self._is_tuple else self._whole[0]


def rows_within(max_s: float, row_s: float) -> int | None:
    """Return how many rows take at most ``max_s``, at least one multiple; None: any number.

    >>> rows_within(0.010, 0.00005)
    192
    """
    if math.isinf(max_s):
        return None
    return max(int(max_s / row_s) // ROWS_MULTIPLE, 1) * ROWS_MULTIPLE


def tile_rows(num_rows: int, max_rows: int) -> int:
    """Divide rows into the fewest tiles, about equally long.

    >>> tile_rows(8000, 576)
    576
    >>> tile_rows(1100, 1024)
    576
    """
    num_tiles = math.ceil(num_rows / max_rows)
    return min(math.ceil(num_rows / num_tiles / ROWS_MULTIPLE) * ROWS_MULTIPLE, max_rows)


def _is_tileable(output: Any) -> bool:
    """Tell whether tiles of this output can be put together: tensors, and nothing computed later.

    A module that was not measured is never run in tiles.
    """
    pieces = output if isinstance(output, tuple) else (output,)
    return all(piece is None or isinstance(piece, torch.Tensor) for piece in pieces)


def _num_rows(args: tuple[Any, ...]) -> int:
    """Return the rows of the first argument; 0 if it is no matrix, which is never tiled."""
    first = args[0] if args else None
    return first.shape[0] if isinstance(first, torch.Tensor) and first.dim() > 1 else 0


def _rows_of(value: Any, num_rows: int, start: int, stop: int) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == num_rows:
        return value[start:stop]
    return value


def _whole_of(piece: torch.Tensor, num_rows: int, given: list[tuple[Any, Any]]) -> torch.Tensor:
    for whole, tile in given:
        if isinstance(tile, torch.Tensor) and tile.data_ptr() == piece.data_ptr():
            return whole
    return piece.new_empty((num_rows, *piece.shape[1:]))
