"""Our Triton kernels in the places of a model that can take them."""

import torch
from sglang_flowprefill.kernels.triton.add_rms_norm import add_rms_norm_rows
from sglang_flowprefill.kernels.triton.silu_and_mul import silu_and_mul_rows

from bench.gpu.llama import EPSILON, RowOps


def _add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    add_rms_norm_rows(x, residual, weight, epsilon=EPSILON, start=0, stop=x.shape[0])
    return x, residual


def _silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    num_rows, width = gate_up.shape
    output = gate_up.new_empty((num_rows, width // 2))
    silu_and_mul_rows(gate_up, output, start=0, stop=num_rows)
    return output


FUSED_OPS = RowOps(_add_norm, _silu_and_mul)
