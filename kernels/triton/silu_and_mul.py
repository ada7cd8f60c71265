"""SiLU of the gate times the up projection, for a row range: one pass over memory.

Rows ``[start, stop)`` of a larger matrix, so that the activation between two tiled matrix
products can be tiled with them. Elements are independent: tiles are bitwise equal to the whole.

Shapes: ``gate_up`` ``[num_rows, 2 * width]``, gate first; ``output`` ``[num_rows, width]``.
Dtypes: float32, float16 or bfloat16, both the same; computed in float32. Alignment: rows
contiguous; any start address and width.

Error: one rounding of the dtype plus ``(16 + abs(gate)) * 2**-24``, relative.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 1024


def silu_and_mul_rows(
    gate_up: torch.Tensor, output: torch.Tensor, *, start: int, stop: int
) -> None:
    """Write ``silu(gate) * up`` of some rows to the same rows of the output.

    Args:
        gate_up: ``[num_rows, 2 * width]``.
        output: ``[num_rows, width]``; other rows are untouched.
        start: First row.
        stop: Row after the last; equal to ``start`` does nothing.

    Raises:
        ValueError: Shapes, dtypes, strides or the range do not fit.
    """
    _require_fit(gate_up, output, start, stop)
    if start == stop:
        return
    width = output.shape[1]
    _silu_and_mul[(stop - start, triton.cdiv(width, _BLOCK))](
        gate_up[start:stop],
        output[start:stop],
        gate_up.stride(0),
        output.stride(0),
        width,
        BLOCK=_BLOCK,
    )


def reference(gate_up: torch.Tensor) -> torch.Tensor:
    """Return ``silu(gate) * up`` of all rows, computed in float32 and rounded once."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


@triton.jit
def _silu_and_mul(
    gate_up,
    output,
    gate_up_stride,
    output_stride,
    width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < width
    gate_row = gate_up + row * gate_up_stride + columns
    gate = tl.load(gate_row, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(gate_row + width, mask=is_inside, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    target = output + row * output_stride + columns
    tl.store(target, result.to(output.dtype.element_ty), mask=is_inside)


def _require_fit(gate_up: torch.Tensor, output: torch.Tensor, start: int, stop: int) -> None:
    if output.dim() != 2 or gate_up.shape != (output.shape[0], 2 * output.shape[1]):
        shapes = tuple(gate_up.shape), tuple(output.shape)
        raise ValueError(f"expected [rows, 2 * width] and [rows, width], got {shapes}")
    if gate_up.dtype != output.dtype:
        raise ValueError(f"dtypes differ: {gate_up.dtype}, {output.dtype}")
    if gate_up.stride(1) != 1 or output.stride(1) != 1:
        raise ValueError("rows must be contiguous")
    if not 0 <= start <= stop <= output.shape[0]:
        raise ValueError(f"rows [{start}, {stop}) are not within {output.shape[0]} rows")
