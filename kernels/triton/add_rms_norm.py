"""Residual add and RMSNorm of a row range: one pass over memory instead of four.

Rows ``[start, stop)`` of a larger matrix, in place, so that a norm over a long prompt can run in
tiles with a boundary between two. Each row is computed by itself: tiles are bitwise equal to the
whole.

Shapes: ``x`` and ``residual`` ``[num_rows, width]``, ``weight`` ``[width]``; width at most 65,536.
Dtypes: float32, float16 or bfloat16, all three tensors the same; sums and the mean square in
float32. Alignment: rows contiguous; any start address and width (a width divisible by 16 is
loaded in wide words).

Error: the sum is rounded once. A normed value is within one rounding of its dtype plus
``(width + 16) * 2**-24`` relative of the exact result for that rounded sum.
"""

import torch
import triton
import triton.language as tl

_MAX_WIDTH = 65_536
_ELEMENTS_PER_WARP = 512


def add_rms_norm_rows(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    *,
    epsilon: float,
    start: int,
    stop: int,
) -> None:
    """Add x to the residual and norm the sum, for some rows, in place.

    Afterwards ``residual`` holds the sum and ``x`` the normed sum; other rows are untouched.

    Args:
        x: ``[num_rows, width]``, the output of the operator before.
        residual: ``[num_rows, width]``.
        weight: ``[width]``.
        epsilon: Added to the mean square.
        start: First row.
        stop: Row after the last; equal to ``start`` does nothing.

    Raises:
        ValueError: Shapes, dtypes, strides or the range do not fit.
    """
    _require_fit(x, residual, weight, start, stop)
    if start == stop:
        return
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    _add_rms_norm[(stop - start,)](
        x[start:stop],
        residual[start:stop],
        weight,
        x.stride(0),
        residual.stride(0),
        width,
        epsilon,
        BLOCK=block,
        num_warps=min(max(block // _ELEMENTS_PER_WARP, 1), 16),
    )


def reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normed sum and the sum of all rows, with the kernel's roundings."""
    total = (x.float() + residual.float()).to(x.dtype)
    wide = total.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    return (wide * scale * weight.float()).to(x.dtype), total


@triton.jit
def _add_rms_norm(
    x,
    residual,
    weight,
    x_stride,
    residual_stride,
    width,
    epsilon,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < width
    x_row = x + row * x_stride + columns
    residual_row = residual + row * residual_stride + columns
    total = tl.load(x_row, mask=is_inside, other=0.0).to(tl.float32)
    total += tl.load(residual_row, mask=is_inside, other=0.0).to(tl.float32)
    rounded = total.to(residual.dtype.element_ty)
    tl.store(residual_row, rounded, mask=is_inside)
    wide = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + epsilon)
    factor = tl.load(weight + columns, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(x_row, (wide * scale * factor).to(x.dtype.element_ty), mask=is_inside)


def _require_fit(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, start: int, stop: int
) -> None:
    if x.dim() != 2 or x.shape != residual.shape or weight.shape != x.shape[1:]:
        shapes = [tuple(tensor.shape) for tensor in (x, residual, weight)]
        raise ValueError(f"expected [rows, width] twice and [width], got {shapes}")
    if x.shape[1] > _MAX_WIDTH:
        raise ValueError(f"a row may have at most {_MAX_WIDTH} elements, got {x.shape[1]}")
    if not x.dtype == residual.dtype == weight.dtype:
        raise ValueError(f"dtypes differ: {x.dtype}, {residual.dtype}, {weight.dtype}")
    if x.stride(1) != 1 or residual.stride(1) != 1 or not weight.is_contiguous():
        raise ValueError("rows must be contiguous")
    if not 0 <= start <= stop <= x.shape[0]:
        raise ValueError(f"rows [{start}, {stop}) are not within {x.shape[0]} rows")
