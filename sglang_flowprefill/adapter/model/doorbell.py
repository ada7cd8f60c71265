"""Linear layers whose long products the host can stop: ``--flowprefill-doorbell``.

A call that would run in row tiles runs as one product that stops when a doorbell rings
(``kernels/triton/doorbell_gemm.py``, ADR 25), under the watch of ``Checkpoint.run``. It takes the
place of the layer's ``forward``, not of the product inside: SGLang multiplies within a memory
context that a suspended prefill must not stand in. On a rank alone a layer is a product and a bias.

Measured on a GPU on its own, not inside SGLang.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from sglang.srt.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    ReplicatedLinear,
    RowParallelLinear,
)
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from torch import nn

from sglang_flowprefill.config import flag_of
from sglang_flowprefill.errors import ConfigError
from sglang_flowprefill.executor import Checkpoint, Operator
from sglang_flowprefill.executor.stoppable import StoppableWork

_FLAG, _ON = flag_of("doorbell"), "on"
_FORWARDS = frozenset(
    layer_type.forward for layer_type in (ReplicatedLinear, ColumnParallelLinear, RowParallelLinear)
)
"""What is a product and a bias on a rank alone; subclasses that inherit it count."""


class StoppableProduct(StoppableWork, Protocol):
    """``x @ weight.T``.

    Attributes:
        output: ``[num_rows, n]``, whole once the work is complete.
    """

    output: torch.Tensor


MakeProduct = Callable[[torch.Tensor, torch.Tensor], StoppableProduct]
"""Of ``x`` ``[num_rows, k]`` and ``weight`` ``[n, k]``; nothing is launched yet."""


def doorbell_products(device: str, num_ranks: int) -> MakeProduct:
    """Return what makes the products of a server, all of which one bell stops.

    Args:
        device: Of the model, such as ``cuda``.
        num_ranks: Tensor-parallel ranks.

    Raises:
        ConfigError: They cannot be had here.
    """
    if not device.startswith("cuda"):
        raise ConfigError(_FLAG, _ON, f"needs an NVIDIA GPU, and this server runs on {device}")
    if num_ranks > 1:
        problem = f"{num_ranks} ranks cannot stop inside one operator; use --tp-size 1"
        raise ConfigError(_FLAG, _ON, problem)
    try:
        from sglang_flowprefill.kernels.triton.doorbell import Doorbell  # noqa: PLC0415
        from sglang_flowprefill.kernels.triton.doorbell_gemm import DoorbellGemm  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(_FLAG, _ON, f"needs Triton 3 or later: {error}") from error
    doorbell = Doorbell(torch.device(device))
    return lambda x, weight: DoorbellGemm(x, weight, doorbell)


def require_plain_weights(operators: list[Operator]) -> None:
    """Refuse a model whose linear layers are not all plain products.

    Raises:
        ConfigError: Names the first that is not, and how it multiplies.
    """
    for operator in operators:
        layer = operator.module
        if (
            isinstance(layer, LinearBase)
            and type(layer.quant_method) is not UnquantizedLinearMethod
        ):
            method = type(layer.quant_method).__name__
            problem = f"takes unquantised weights only, and {operator.name} multiplies by {method}"
            raise ConfigError(_FLAG, _ON, problem)


def stoppable_forward(
    operator: Operator, checkpoint: Checkpoint, make_product: MakeProduct
) -> Callable[..., Any] | None:
    """Return a linear layer's forward as work that can be stopped; None for another kind of layer.

    Args:
        operator: Its module is alone on its rank.
        checkpoint: Watches the product.
        make_product: Of the product.
    """
    layer: Any = operator.module
    if type(layer).forward not in _FORWARDS:
        return None
    whole = layer.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dim() != 2 or any(isinstance(a, torch.Tensor) for a in (*args, *kwargs.values())):
            return whole(x, *args, **kwargs)  # an output that the caller owns
        work = make_product(x, layer.weight)
        checkpoint.run(work, operator.name)
        if layer.bias is None or layer.skip_bias_add:
            return work.output, layer.bias
        return work.output.add_(layer.bias), None

    return forward


def is_all_linear(block: nn.Module) -> bool:
    """Tell whether a block's linear layers hold all its weights: it then needs no tiles itself."""
    linear = (module for module in block.modules() if isinstance(module, LinearBase))
    return _num_weights(block) == sum(map(_num_weights, linear))


def _num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
