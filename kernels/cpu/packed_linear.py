"""A linear layer's weight, packed once into the layout that the matrix library multiplies.

``torch.nn.functional.linear`` in bfloat16 hands oneDNN a plain weight, which oneDNN reorders in
every call: as long as the product itself for a few rows, a tenth of it for thousands. Here the
reordering is done once. oneDNN then runs the same kernel on the same layout, so that the result is
the same to the last bit (tested).

Shapes: ``x [..., in_features]`` bfloat16, weight ``[out_features, in_features]`` bfloat16, bias
``[out_features]`` or none. No alignment is asked for. A packed weight takes about as many bytes as
the plain one, which stays: whoever reads or updates weights finds it as ever. It does not follow
the plain weight's changes; pack again after one.
"""

import torch

_PLAIN_PRODUCT = ("none", [], "")  # no activation fused, none of its arguments, no algorithm


def can_pack(weight: torch.Tensor) -> bool:
    """Tell whether packing pays: oneDNN multiplies this dtype on this processor."""
    return (
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.layout == torch.strided
        and weight.dim() == 2
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight in oneDNN's layout: an opaque tensor, a copy.

    Args:
        weight: ``[out_features, in_features]``, one that ``can_pack``.
    """
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return packed


def packed_linear(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``.

    Args:
        x: ``[..., in_features]`` bfloat16; at least one row.
        packed: From ``pack_weight``.
        bias: ``[out_features]``, or None.
    """
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
        x, packed, bias, *_PLAIN_PRODUCT
    )
    return product
