"""A matrix product that the host can stop at a tile and resume there: ``x @ weight.T``.

A long operator need not be cut into launches: one persistent launch computes all its output
tiles, and between any two of them each program asks whether to stop (``doorbell.py`` is how the
host says so). Once it has rung, every program ends within the time of about two tiles. Launching
it again computes the rest.

No tile is lost or done twice. With P programs, program p computes the tiles p, p + P, p + 2P and
so on, in this order and alone; ``progress[1 + p]`` is how many of them it has done. It writes that
number after each tile, nobody else does, and a launch has exactly P programs, the same P every
time. So at the end of a launch the tiles done are, for each p, the first ``progress[1 + p]`` of
its own, and the next launch goes on with the one after. When programs stop, and whether they
agree on it, plays no role.

Every launch makes progress: a program computes its next tile before it asks for the first time.
So a scheduler that rings each time at once still sees the end.

Who reads the flag. It lies in host memory, and a read takes a microsecond or two on the bus,
where reads queue up: when every warp of every program read it before every tile, that cost 15
times the product itself (measured, H200). So a tile in 16 is followed by a look at the bell, by
one thread; another program's turn each time, so that about every sixteenth program looks while
all others compute. Who hears it sets ``progress[0]`` in device memory, which all ask.

The threads of one program must agree whether they stop, or they would wait for one another for
ever. So the decision is not loaded but the result of an atomic: Triton performs a scalar atomic
once per program and hands all its threads the same result.

A tile's sum over k runs in one order whichever program computes it and whenever: an interrupted
and resumed product is bitwise equal to an uninterrupted one.

Shapes: ``x`` ``[num_rows, k]``, ``weight`` ``[n, k]``, ``output`` ``[num_rows, n]``, at least 1
each; fewer than 2**31 tiles. Dtypes: float32 (products in float32, not tf32), float16 or
bfloat16, all three the same; sums in float32. Alignment: rows contiguous. 16-bit operands whose
rows all begin at multiples of 16 bytes are copied by the bulk copy engine of a Hopper GPU, others
load by load.

Error: one rounding of the dtype, plus ``(k + 1) * 2**-23`` times ``abs(x) @ abs(weight).T``.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from sglang_flowprefill.kernels.triton.doorbell import Doorbell
from triton.tools.tensor_descriptor import TensorDescriptor

_PROGRAMS_IN_INTERPRETER: Final = 4
_PROGRAMS_PER_LOOK: Final = 16
"""While so many programs compute a tile, one looks at the bell."""

_BULK_COPY_BYTES: Final = 16
"""What addresses and row strides must be a multiple of."""


@dataclass(frozen=True, slots=True)
class TileShape:
    """What one program computes before it asks whether to stop, and how.

    Attributes:
        rows: Of the output.
        columns: Of the output.
        depth: Of k, per step.
        num_warps: Of a program.
        num_stages: Steps whose loads are in flight.
        programs_per_processor: Programs that share a multiprocessor: one stores its tile while
            another multiplies.
        rows_in_group: Row tiles that share their columns' weights in the cache before the next
            columns come.
        copies_in_bulk: Use the bulk copy engine where operands allow it.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    programs_per_processor: int = 1
    rows_in_group: int = 8
    copies_in_bulk: bool = True


HALF_TILE = TileShape(rows=128, columns=256, depth=64, num_warps=8, num_stages=4)
"""For 16-bit inputs on Hopper: some 45 us at k = 4096."""

FLOAT_TILE = TileShape(rows=64, columns=64, depth=32, num_warps=4, num_stages=3)
"""For float32, which has no matrix units of full precision; there for completeness."""


class DoorbellGemm:
    """One product: not begun, stopped somewhere, or complete.

    Args:
        x: ``[num_rows, k]``.
        weight: ``[n, k]``, as ``nn.Linear`` keeps it.
        doorbell: Rung to stop it. Launched while it is rung, a program does a tile or two.
        tile: How to divide the output; by default what suits the dtype.

    Attributes:
        output: ``[num_rows, n]``, uninitialised where no tile has been computed.
        num_tiles: All tiles.
        num_programs: How many share them.

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
        self._tile = tile or (FLOAT_TILE if x.dtype == torch.float32 else HALF_TILE)
        self._doorbell = doorbell
        self.output = x.new_empty((x.shape[0], weight.shape[0]))
        self._matrices = (x, weight, self.output)
        self._operands = _operands(self._matrices, self._tile)
        self.num_tiles = triton.cdiv(x.shape[0], self._tile.rows) * triton.cdiv(
            weight.shape[0], self._tile.columns
        )
        self.num_programs = min(self.num_tiles, _num_programs(x.device, self._tile))
        self._progress = torch.zeros(1 + self.num_programs, dtype=torch.int32, device=x.device)
        self._num_launches = 0

    @property
    def num_tiles_done(self) -> int:
        """Tiles computed so far. Waits for the device."""
        return int(self._progress[1:].sum().item())

    @property
    def is_complete(self) -> bool:
        """Tell whether the whole output has been computed. Waits for the device."""
        return self.num_tiles_done == self.num_tiles

    def launch(self) -> None:
        """Launch what is left; return at once.

        Only when the launch before has ended: two at a time would do every tile twice.
        """
        if self._num_launches:
            self._progress[0].zero_()
        self._num_launches += 1
        tile = self._tile
        (num_rows, k), n = self._matrices[0].shape, self.output.shape[1]
        _doorbell_gemm[(self.num_programs,)](
            *self._operands,
            self._progress,
            self._doorbell.flag,
            num_rows,
            n,
            k,
            *(matrix.stride(0) for matrix in self._matrices),
            self.num_tiles,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            GROUP=tile.rows_in_group,
            THREADS=tile.num_warps * 32,
            LOOK_EVERY=min(_PROGRAMS_PER_LOOK, self.num_programs),
            IS_BULK=isinstance(self._operands[0], TensorDescriptor),
            IS_DEPTH_EVEN=k % tile.depth == 0,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    def ring(self) -> None:
        """Stop it soon."""
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
    THREADS: tl.constexpr,
    LOOK_EVERY: tl.constexpr,
    IS_BULK: tl.constexpr,
    IS_DEPTH_EVEN: tl.constexpr,
):
    program = tl.program_id(0)
    num_done = tl.load(progress + 1 + program)
    tile = program + num_done * tl.num_programs(0)
    until_look = program % LOOK_EVERY
    while tile < num_tiles:
        row_start, column_start = _corner(tile, num_rows, n, ROWS, COLUMNS, GROUP)
        if IS_BULK:
            total = _bulk_sum(x, weight, row_start, column_start, k, ROWS, COLUMNS, DEPTH)
            output.store([row_start, column_start], total.to(output.dtype))
        else:
            rows = (row_start + tl.arange(0, ROWS)).to(tl.int64)
            columns = (column_start + tl.arange(0, COLUMNS)).to(tl.int64)
            # Rows past the end read a row that exists; only the store leaves them out.
            total = _sum(
                x + (rows % num_rows)[:, None] * x_stride,
                weight + (columns % n)[None, :] * weight_stride,
                k,
                ROWS,
                COLUMNS,
                DEPTH,
                IS_DEPTH_EVEN,
            )
            target = output + rows[:, None] * output_stride + columns[None, :]
            is_inside = (rows < num_rows)[:, None] & (columns < n)[None, :]
            tl.store(target, total.to(output.dtype.element_ty), mask=is_inside)
        num_done += 1
        tl.store(progress + 1 + program, num_done)
        if until_look == 0:
            until_look = LOOK_EVERY
            tl.atomic_max(progress, _read_by_one(doorbell, THREADS), sem="relaxed")
        until_look -= 1
        tile += tl.num_programs(0)
        if tl.atomic_max(progress, 0, sem="relaxed") != 0:
            tile = num_tiles


@triton.jit
def _corner(tile, num_rows, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Return the first row and column of a tile: down a group of row tiles, then to the right."""
    num_row_tiles = tl.cdiv(num_rows, ROWS)
    num_in_group = GROUP * tl.cdiv(n, COLUMNS)
    first_row_tile = tile // num_in_group * GROUP
    num_group_rows = min(num_row_tiles - first_row_tile, GROUP)
    within = tile % num_in_group
    row_start = (first_row_tile + within % num_group_rows) * ROWS
    return row_start, within // num_group_rows * COLUMNS


@triton.jit
def _bulk_sum(
    x,
    weight,
    row_start,
    column_start,
    k,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Return the sums of a tile; what lies outside the operands is read as zero."""
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for depth_start in range(0, k, DEPTH):
        a = x.load([row_start, depth_start])
        b = weight.load([column_start, depth_start])
        total = tl.dot(a, b.T, total)
    return total


@triton.jit
def _sum(
    x_rows,
    weight_columns,
    k,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    IS_DEPTH_EVEN: tl.constexpr,
):
    """Return the sums of a tile; the pointers are those of its rows and columns."""
    depths = tl.arange(0, DEPTH)
    x_tile = x_rows + depths[None, :]
    weight_tile = weight_columns + depths[:, None]
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
    return total


@triton.jit
def _read_by_one(flag, THREADS: tl.constexpr):
    """Return the flag, read by one thread: a scalar load would be done by every warp."""
    lanes = tl.arange(0, THREADS)
    return tl.max(tl.load(flag + lanes * 0, mask=lanes == 0, other=0, volatile=True), axis=0)


def _operands(matrices: tuple[torch.Tensor, ...], tile: TileShape) -> tuple[Any, ...]:
    """Return x, weight and output as the kernel takes them: for the copy engine if possible."""
    if not tile.copies_in_bulk or not all(_can_be_copied_in_bulk(m) for m in matrices):
        return matrices
    blocks = ([tile.rows, tile.depth], [tile.columns, tile.depth], [tile.rows, tile.columns])
    return tuple(
        TensorDescriptor.from_tensor(matrix, block)
        for matrix, block in zip(matrices, blocks, strict=True)
    )


def _can_be_copied_in_bulk(matrix: torch.Tensor) -> bool:
    if matrix.dtype == torch.float32:
        return False
    if matrix.is_cuda and torch.cuda.get_device_capability(matrix.device) < (9, 0):
        return False
    row_bytes = matrix.stride(0) * matrix.element_size()
    return matrix.data_ptr() % _BULK_COPY_BYTES == row_bytes % _BULK_COPY_BYTES == 0


def _num_programs(device: torch.device, tile: TileShape) -> int:
    """Return how many run at once."""
    if device.type == "cpu":
        return _PROGRAMS_IN_INTERPRETER
    num_processors = int(torch.cuda.get_device_properties(device).multi_processor_count)
    return num_processors * tile.programs_per_processor


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
