"""How near each kernel comes to what the machine can do, and torch's own beside it."""

from collections.abc import Callable

import torch
from sglang_flowprefill.kernels.triton.add_rms_norm import add_rms_norm_rows
from sglang_flowprefill.kernels.triton.doorbell import Doorbell
from sglang_flowprefill.kernels.triton.doorbell_gemm import DoorbellGemm
from sglang_flowprefill.kernels.triton.gemm_rows import gemm_rows
from sglang_flowprefill.kernels.triton.silu_and_mul import silu_and_mul_rows

from bench.gpu.device import GPU
from bench.gpu.llama import EPSILON, Shape, causal_attention, torch_add_norm, torch_silu_and_mul
from bench.gpu.rates import Ceilings, Rate, measure_product, measure_rate, random_half

_TILE_ROWS = 2048


def measure_kernels(shape: Shape, num_rows: int, ceilings: Ceilings) -> list[Rate]:
    """Measure every kernel at the sizes of one layer."""
    rates = [*_row_kernels(shape, num_rows, ceilings)]
    for name, (n, k) in layer_products(shape).items():
        rates += _products(name, (num_rows, n, k), ceilings)
    rates.append(measure_attention(shape, num_rows, num_rows, ceilings))
    return rates


def layer_products(shape: Shape) -> dict[str, tuple[int, int]]:
    """Return columns and terms of a sum of a layer's four products."""
    width = shape.num_heads * shape.head_dim
    return {
        "qkv": (width + 2 * shape.num_kv_heads * shape.head_dim, shape.hidden),
        "o": (shape.hidden, width),
        "gate_up": (2 * shape.intermediate, shape.hidden),
        "down": (shape.hidden, shape.intermediate),
    }


def measure_attention(shape: Shape, num_queries: int, num_keys: int, ceilings: Ceilings) -> Rate:
    """Measure torch's flash attention of the last queries to all keys, causal."""
    q = random_half(num_queries, shape.num_heads, shape.head_dim)
    k, v = (random_half(num_keys, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    num_pairs = num_queries * (num_keys - num_queries / 2)  # the others are masked
    return measure_rate(
        f"attention: torch, flash {num_queries} queries, {num_keys} keys",
        lambda: causal_attention(q, k, v),
        4.0 * num_pairs * shape.num_heads * shape.head_dim,
        float(2 * q.nbytes + k.nbytes + v.nbytes),
        ceilings,
    )


def _row_kernels(shape: Shape, num_rows: int, ceilings: Ceilings) -> list[Rate]:
    x, residual = (random_half(num_rows, shape.hidden) for _ in range(2))
    weight = random_half(shape.hidden)
    gate_up = random_half(num_rows, 2 * shape.intermediate)
    activated = gate_up.new_empty((num_rows, shape.intermediate))
    norm_bytes = 4.0 * x.nbytes
    silu_bytes = float(gate_up.nbytes + activated.nbytes)

    def norm() -> None:
        add_rms_norm_rows(x, residual, weight, epsilon=EPSILON, start=0, stop=num_rows)

    def silu() -> None:
        silu_and_mul_rows(gate_up, activated, start=0, stop=num_rows)

    def bound_by_bytes(name: str, call: Callable[[], object], num_bytes: float) -> Rate:
        return measure_rate(f"{name} {num_rows} rows", call, 0.0, num_bytes, ceilings)

    return [
        bound_by_bytes("add_rms_norm", norm, norm_bytes),
        bound_by_bytes("  torch", lambda: torch_add_norm(x, residual, weight), norm_bytes),
        bound_by_bytes("silu_and_mul", silu, silu_bytes),
        bound_by_bytes("  torch", lambda: torch_silu_and_mul(gate_up), silu_bytes),
    ]


def _products(name: str, size: tuple[int, int, int], ceilings: Ceilings) -> list[Rate]:
    num_rows, n, k = size
    x, weight = random_half(num_rows, k), random_half(n, k)
    output = x.new_empty((num_rows, n))
    doorbell = Doorbell(GPU)

    def in_tiles() -> None:
        for start in range(0, num_rows, _TILE_ROWS):
            stop = min(start + _TILE_ROWS, num_rows)
            gemm_rows(x, weight, output, start=start, stop=stop)

    calls: dict[str, Callable[[], object]] = {
        f"{name}: torch": lambda: torch.mm(x, weight.T, out=output),
        f"  gemm_rows by {_TILE_ROWS}": in_tiles,
        "  doorbell_gemm": lambda: DoorbellGemm(x, weight, doorbell).launch(),
    }
    return [measure_product(label, call, size, ceilings) for label, call in calls.items()]
