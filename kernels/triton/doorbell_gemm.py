"""A matrix product that the host can stop at a tile and resume there: ``x @ weight.T``.

A long operator need not be cut into launches: one persistent launch computes all its output
tiles, and between any two of them each program looks at a flag in host memory
(``doorbell.py``). Once it has rung, nobody begins another tile, and the kernel ends within the
time of one. Launching it again computes the rest.

No tile is lost or done twice. ``progress[0]`` is the number of tiles handed out; a program takes
the next one by adding 1 to it atomically, so every number goes to exactly one program. A program
leaves its loop in two ways only: on finding the stop flag *before* it takes a number, or on taking
one past the last tile. So whoever takes a tile computes it, and when the launch has ended the
tiles done are exactly those below ``progress[0]``, in an order fixed by the shape. The next launch
goes on from that number. How many programs there are, and how they are interleaved, plays no role.

Every launch makes progress: a program takes its first tile without a look at the bell. So a
scheduler that rings each time at once still sees the end.

Programs need not agree on where they stop, but the threads of one program must. A plain load may
give the two warps of one program different answers if the bell rings between them. So what was
loaded is only passed to ``atomic_max`` on ``progress[1]``, and the decision taken from a second
atomic on it: Triton performs a scalar atomic once per program and hands all its threads the same
result. The bell's value thereby reaches the other programs too.

A tile's sum over k runs in one order whichever program computes it and whenever: an interrupted
and resumed product is bitwise equal to an uninterrupted one.

Shapes: ``x`` ``[num_rows, k]``, ``weight`` ``[n, k]``, ``output`` ``[num_rows, n]``, at least 1
each; fewer than 2**31 tiles. Dtypes: float32 (products in float32, not tf32), float16 or
bfloat16, all three the same; sums in float32. Alignment: rows contiguous; k divisible by 16 is
fastest.

Error: one rounding of the dtype, plus ``(k + 1) * 2**-23`` times ``abs(x) @ abs(weight).T``.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from sglang_flowprefill.kernels.triton.doorbell import Doorbell

_PROGRAMS_IN_INTERPRETER: Final = 4
_ROW_TILES_IN_GROUP: Final = 8
"""Row tiles that share their columns' weights in the cache before the next columns come."""


@dataclass(frozen=True, slots=True)
class TileShape:
    """What one program computes between two looks at the doorbell, and how.

    Attributes:
        rows: Of the output.
        columns: Of the output.
        depth: Of k, per step.
        num_warps: Of a program.
        num_stages: Steps whose loads are in flight.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


HALF_TILE = TileShape(rows=128, columns=256, depth=64, num_warps=8, num_stages=3)
"""For 16-bit inputs on Hopper: about 45 us at k = 4096."""

FLOAT_TILE = TileShape(rows=64, columns=64, depth=32, num_warps=4, num_stages=3)
"""For float32, which has no matrix units of full precision; there for completeness."""


class DoorbellGemm:
    """One product: not begun, stopped somewhere, or complete.

    Args:
        x: ``[num_rows, k]``.
        weight: ``[n, k]``, as ``nn.Linear`` keeps it.
        doorbell: Rung to stop it. Launched while it is rung, only one tile a program runs.
        tile: How to divide the output; by default what suits the dtype.

    Attributes:
        output: ``[num_rows, n]``, uninitialised where no tile has been computed.
        num_tiles: All tiles.

    Raises:
        ValueError: Shapes, dtypes or strides do not fit.
    """

    def __init__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        doorbell: Doorbell,
        tile: TileShape | None = None,
    ) -> None:
        _require_fit(x, weight)
        self._x, self._weight, self._doorbell = x, weight, doorbell
        self._tile = tile or (FLOAT_TILE if x.dtype == torch.float32 else HALF_TILE)
        self._progress = torch.zeros(2, dtype=torch.int32, device=x.device)
        self._num_launches = 0
        self.output = x.new_empty((x.shape[0], weight.shape[0]))
        self.num_tiles = triton.cdiv(x.shape[0], self._tile.rows) * triton.cdiv(
            weight.shape[0], self._tile.columns
        )

    @property
    def num_tiles_done(self) -> int:
        """Tiles computed so far. Waits for the device."""
        return min(int(self._progress[0].item()), self.num_tiles)

    @property
    def is_complete(self) -> bool:
        """Tell whether the whole output has been computed. Waits for the device."""
        return self.num_tiles_done == self.num_tiles

    def launch(self) -> None:
        """Launch what is left; return at once.

        Only when the launch before has ended: two at a time would share the tiles correctly but
        leave no moment at which the stop flag may be lowered.
        """
        if self._num_launches:
            self._progress[1].zero_()
        self._num_launches += 1
        tile = self._tile
        (num_rows, k), n = self._x.shape, self._weight.shape[0]
        _doorbell_gemm[(min(self.num_tiles, _num_programs(self._x.device)),)](
            self._x,
            self._weight,
            self.output,
            self._progress,
            self._doorbell.flag,
            num_rows,
            n,
            k,
            self._x.stride(0),
            self._weight.stride(0),
            self.output.stride(0),
            self.num_tiles,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            GROUP=_ROW_TILES_IN_GROUP,
            IS_DEPTH_EVEN=k % tile.depth == 0,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    def ring(self) -> None:
        """Stop it before its next tile."""
        self._doorbell.ring()

    def clear(self) -> None:
        """Let the next launch run. Only once the launch before has ended."""
        self._doorbell.clear()


def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the product summed in float64, rounded once."""
    return (x.double() @ weight.double().T).to(x.dtype)


# The number of rows is another one in every prompt: compiling for it would stall a server.
@triton.jit(do_not_specialize=["num_rows", "num_tiles"])
def _doorbell_gemm(
    x,
    weight,
    output,
    progress,
    doorbell,
    num_rows,
    n,
    k,
    x_stride,
    weight_stride,
    output_stride,
    num_tiles,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    IS_DEPTH_EVEN: tl.constexpr,
):
    num_row_tiles = tl.cdiv(num_rows, ROWS)
    num_in_group = GROUP * tl.cdiv(n, COLUMNS)
    depths = tl.arange(0, DEPTH)
    tile = tl.atomic_add(progress, 1, sem="relaxed")
    while tile < num_tiles:
        first_row_tile = tile // num_in_group * GROUP
        num_group_rows = min(num_row_tiles - first_row_tile, GROUP)
        within = tile % num_in_group
        row_start = (first_row_tile + within % num_group_rows) * ROWS
        column_start = within // num_group_rows * COLUMNS
        rows = (row_start + tl.arange(0, ROWS)).to(tl.int64)
        columns = (column_start + tl.arange(0, COLUMNS)).to(tl.int64)
        # Rows past the end read a row that exists; only the store leaves them out.
        x_tile = x + (rows % num_rows)[:, None] * x_stride + depths[None, :]
        weight_tile = weight + (columns % n)[None, :] * weight_stride + depths[:, None]
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for depth_start in range(0, k, DEPTH):
            if IS_DEPTH_EVEN:
                a = tl.load(x_tile)
                b = tl.load(weight_tile)
            else:
                is_inside = depths < k - depth_start
                a = tl.load(x_tile, mask=is_inside[None, :], other=0.0)
                b = tl.load(weight_tile, mask=is_inside[:, None], other=0.0)
            total = tl.dot(a, b, total, input_precision="ieee")
            x_tile += DEPTH
            weight_tile += DEPTH
        target = output + rows[:, None] * output_stride + columns[None, :]
        is_inside_output = (rows < num_rows)[:, None] & (columns < n)[None, :]
        tl.store(target, total.to(output.dtype.element_ty), mask=is_inside_output)
        tile = _next_tile(doorbell, progress, num_tiles)


@triton.jit
def _next_tile(doorbell, progress, num_tiles):
    """Take the next tile; return the number of tiles, and take none, once the bell has rung."""
    tl.atomic_max(progress + 1, tl.load(doorbell, volatile=True), sem="relaxed")
    tile = num_tiles
    if tl.atomic_max(progress + 1, 0, sem="relaxed") == 0:
        tile = tl.atomic_add(progress, 1, sem="relaxed")
    return tile


def _num_programs(device: torch.device) -> int:
    """Return how many run at once: one on each multiprocessor."""
    if device.type == "cpu":
        return _PROGRAMS_IN_INTERPRETER
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _require_fit(x: torch.Tensor, weight: torch.Tensor) -> None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        shapes = tuple(x.shape), tuple(weight.shape)
        raise ValueError(f"expected [rows, k] and [n, k], got {shapes}")
    if 0 in x.shape or 0 in weight.shape:
        raise ValueError(f"nothing to compute in {tuple(x.shape)} by {tuple(weight.shape)}")
    if x.dtype != weight.dtype:
        raise ValueError(f"dtypes differ: {x.dtype}, {weight.dtype}")
    if x.stride(1) != 1 or weight.stride(1) != 1:
        raise ValueError("rows must be contiguous")
