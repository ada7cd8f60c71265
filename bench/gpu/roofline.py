"""How near each kernel comes to what the machine can do, measured on the same machine.

Two ceilings: a large bfloat16 product of the vendor's library, and a large copy. A kernel's share
is the rate it achieves of the ceiling that binds it. Operands are random (zeros run faster) and
several times larger than the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
from sglang_flowprefill.kernels.triton.add_rms_norm import add_rms_norm_rows
from sglang_flowprefill.kernels.triton.doorbell import Doorbell
from sglang_flowprefill.kernels.triton.doorbell_gemm import DoorbellGemm
from sglang_flowprefill.kernels.triton.gemm_rows import gemm_rows
from sglang_flowprefill.kernels.triton.silu_and_mul import silu_and_mul_rows

from bench.gpu.device import GPU
from bench.gpu.llama import EPSILON, Shape, causal_attention, torch_add_norm, torch_silu_and_mul

_CEILING_SIZE = 8192
_COPY_BYTES = 2**30
_TILE_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine was measured to do.

    Attributes:
        flops_per_s: bfloat16 product of 8192 by 8192 by 8192.
        bytes_per_s: Copy of 1 GiB, bytes read and written.
    """

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class KernelRate:
    """One kernel's median time and what it means.

    Attributes:
        name: Kernel and size.
        seconds: Median time of a call.
        flops: Operations that the result needs; 0 where bytes bind.
        num_bytes: Bytes that it must move at least.
        ceiling: ``flops`` or ``bytes``: what binds.
        achieved_per_s: Of these.
        share: Of the ceiling.
    """

    name: str
    seconds: float
    flops: float
    num_bytes: float
    ceiling: str
    achieved_per_s: float
    share: float


def measure_ceilings() -> Ceilings:
    """Measure both ceilings."""
    a, b = (_random(_CEILING_SIZE, _CEILING_SIZE) for _ in range(2))
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=GPU).random_()
    target = torch.empty_like(source)
    return Ceilings(
        flops_per_s=2.0 * _CEILING_SIZE**3 / _median_s(lambda: a @ b),
        bytes_per_s=2.0 * _COPY_BYTES / _median_s(lambda: target.copy_(source)),
    )


def measure_kernels(shape: Shape, num_rows: int, ceilings: Ceilings) -> list[KernelRate]:
    """Measure every kernel, and torch's own beside it, at the sizes of one layer."""
    rates = [*_row_kernels(shape, num_rows, ceilings)]
    for name, n, k in (
        ("qkv", (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim, shape.hidden),
        ("o", shape.hidden, shape.num_heads * shape.head_dim),
        ("gate_up", 2 * shape.intermediate, shape.hidden),
        ("down", shape.hidden, shape.intermediate),
    ):
        rates += _products(name, num_rows, n, k, ceilings)
    rates.append(_attention(shape, num_rows, ceilings))
    return rates


def _row_kernels(shape: Shape, num_rows: int, ceilings: Ceilings) -> list[KernelRate]:
    x, residual = (_random(num_rows, shape.hidden) for _ in range(2))
    weight = _random(shape.hidden)
    gate_up = _random(num_rows, 2 * shape.intermediate)
    activated = gate_up.new_empty((num_rows, shape.intermediate))
    norm_bytes = 4.0 * x.nbytes
    silu_bytes = float(gate_up.nbytes + activated.nbytes)

    def norm() -> None:
        add_rms_norm_rows(x, residual, weight, epsilon=EPSILON, start=0, stop=num_rows)

    def silu() -> None:
        silu_and_mul_rows(gate_up, activated, start=0, stop=num_rows)

    def bound_by_bytes(name: str, call: Callable[[], object], num_bytes: float) -> KernelRate:
        return _rate(f"{name} {num_rows} rows", call, 0.0, num_bytes, ceilings)

    return [
        bound_by_bytes("add_rms_norm", norm, norm_bytes),
        bound_by_bytes("  torch", lambda: torch_add_norm(x, residual, weight), norm_bytes),
        bound_by_bytes("silu_and_mul", silu, silu_bytes),
        bound_by_bytes("  torch", lambda: torch_silu_and_mul(gate_up), silu_bytes),
    ]


def _products(name: str, num_rows: int, n: int, k: int, ceilings: Ceilings) -> list[KernelRate]:
    x, weight = _random(num_rows, k), _random(n, k)
    output = x.new_empty((num_rows, n))
    doorbell = Doorbell(GPU)
    flops = 2.0 * num_rows * n * k
    num_bytes = float(x.nbytes + weight.nbytes + output.nbytes)

    def in_tiles() -> None:
        for start in range(0, num_rows, _TILE_ROWS):
            stop = min(start + _TILE_ROWS, num_rows)
            gemm_rows(x, weight, output, start=start, stop=stop)

    def product(label: str, call: Callable[[], object]) -> KernelRate:
        return _rate(f"{label} {num_rows}x{n}x{k}", call, flops, num_bytes, ceilings)

    return [
        product(f"{name}: torch", lambda: torch.mm(x, weight.T, out=output)),
        product(f"  gemm_rows by {_TILE_ROWS}", in_tiles),
        product("  doorbell_gemm", lambda: DoorbellGemm(x, weight, doorbell).launch()),
    ]


def _attention(shape: Shape, num_rows: int, ceilings: Ceilings) -> KernelRate:
    q = _random(num_rows, shape.num_heads, shape.head_dim)
    k, v = (_random(num_rows, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    flops = 2.0 * num_rows**2 * shape.num_heads * shape.head_dim  # half of the pairs are masked
    num_bytes = float(2 * q.nbytes + k.nbytes + v.nbytes)
    return _rate(
        f"attention: torch, flash {num_rows} rows",
        lambda: causal_attention(q, k, v),
        flops,
        num_bytes,
        ceilings,
    )


def _rate(
    name: str, call: Callable[[], object], flops: float, num_bytes: float, ceilings: Ceilings
) -> KernelRate:
    seconds = _median_s(call)
    is_arithmetic = flops / ceilings.flops_per_s > num_bytes / ceilings.bytes_per_s
    work, ceiling = (
        (flops, ceilings.flops_per_s) if is_arithmetic else (num_bytes, ceilings.bytes_per_s)
    )
    return KernelRate(
        name=name,
        seconds=seconds,
        flops=flops,
        num_bytes=num_bytes,
        ceiling="flops" if is_arithmetic else "bytes",
        achieved_per_s=work / seconds,
        share=work / seconds / ceiling,
    )


def _median_s(call: Callable[[], object]) -> float:
    return triton.testing.do_bench(call, warmup=20, rep=100, return_mode="median") / 1000


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=GPU, dtype=torch.bfloat16)
