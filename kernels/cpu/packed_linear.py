"""A linear layer's weight, packed once into the layout that the processor multiplies.

``torch.nn.functional.linear`` in bfloat16 hands oneDNN a plain weight, which oneDNN reorders in
every call: as long as the product itself for a few rows, a tenth of it for thousands. Here that is
done once, for one of two multipliers: the compiled kernel (``linear.cpp``), or oneDNN where there
is none, where it does not take the widths, or where there is AMX, which only oneDNN uses.

A packed weight takes as many bytes as the plain one, which stays: whoever reads or updates weights
finds it as ever. It does not follow the plain weight's changes; pack again after one.
"""

from dataclasses import dataclass

import torch
from sglang_flowprefill.kernels.cpu.native import (
    NativeKernels,
    can_multiply,
    has_amx,
    load_native,
)

_PLAIN_PRODUCT = ("none", [], "")  # no activation fused, none of its arguments, no algorithm


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight in the layout of one multiplier.

    Attributes:
        layout: The copy: opaque, for that multiplier alone.
        native: The compiled kernels, if it is for them; None: for oneDNN.
    """

    layout: torch.Tensor
    native: NativeKernels | None


def can_pack(weight: torch.Tensor) -> bool:
    """Tell whether something here multiplies this weight packed."""
    is_plain = weight.layout == torch.strided and weight.dim() == 2
    return is_plain and (_kernels_for(weight) is not None or _onednn_takes(weight))


def pack_weight(weight: torch.Tensor) -> PackedWeight:
    """Return a packed copy.

    Args:
        weight: ``[out_features, in_features]``, one that ``can_pack``.
    """
    plain = weight.detach().contiguous()
    if (native := _kernels_for(plain)) is not None:
        return PackedWeight(native.pack_linear(plain), native)
    return PackedWeight(torch.ops.mkldnn._reorder_linear_weight(plain), None)


def packed_linear(
    x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``, each output a float32 sum that is rounded once.

    Args:
        x: ``[..., in_features]`` bfloat16; at least one row.
        packed: From ``pack_weight``.
        bias: ``[out_features]`` bfloat16, or None.
    """
    if packed.native is None:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x, packed.layout, bias, *_PLAIN_PRODUCT
        )
        return product
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    output = packed.native.linear(rows, packed.layout, bias)
    return output if x.dim() == 2 else output.view(*x.shape[:-1], -1)


def _kernels_for(weight: torch.Tensor) -> NativeKernels | None:
    if not can_multiply(weight) or has_amx():
        return None
    return load_native()


def _onednn_takes(weight: torch.Tensor) -> bool:
    return (
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
