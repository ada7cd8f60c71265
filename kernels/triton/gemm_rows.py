"""A row range of a matrix product, written in place by torch's own matrix library.

No kernel of our own: for whole row ranges nothing beats the vendor's. What it adds is that a tile
lands where it belongs, without the temporary and the copy that ``output[a:b] = x[a:b] @ w.T``
makes. Kept beside the Triton kernels because it completes their set: norm, activation, product.

Shapes: ``x`` ``[num_rows, k]``, ``weight`` ``[n, k]``, ``output`` ``[num_rows, n]``. Dtypes: what
torch multiplies, all three the same. Alignment: rows contiguous.

Error: that of torch's product of these rows. The library may choose another kernel for another
number of rows, so tiles agree with the whole within the rounding of one dot product, not bitwise.
"""

import torch


def gemm_rows(
    x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, *, start: int, stop: int
) -> None:
    """Write ``x @ weight.T`` of some rows to the same rows of the output.

    Args:
        x: ``[num_rows, k]``.
        weight: ``[n, k]``, as ``nn.Linear`` keeps it.
        output: ``[num_rows, n]``; other rows are untouched.
        start: First row.
        stop: Row after the last.

    Raises:
        ValueError: The range is not within the rows.
        RuntimeError: Torch refuses the shapes or dtypes.
    """
    if not 0 <= start <= stop <= x.shape[0]:
        raise ValueError(f"rows [{start}, {stop}) are not within {x.shape[0]} rows")
    torch.mm(x[start:stop], weight.T, out=output[start:stop])


def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the product of all rows, summed in float32 (float64 for float32 inputs)."""
    wide = torch.float64 if x.dtype == torch.float32 else torch.float32
    return (x.to(wide) @ weight.to(wide).T).to(x.dtype)
