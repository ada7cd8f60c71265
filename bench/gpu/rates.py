"""Rates of single calls, and the two ceilings of the machine that they are compared with.

Two ceilings: a large bfloat16 product of the vendor's library, and a large copy. A call's share
is the rate it achieves of the ceiling that binds it. Operands are random (zeros run faster) and
several times larger than the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton

from bench.gpu.device import GPU

_CEILING_SIZE = 8192
_COPY_BYTES = 2**30


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
class Rate:
    """One call's median time and what it means.

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
    a, b = (random_half(_CEILING_SIZE, _CEILING_SIZE) for _ in range(2))
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=GPU).random_()
    target = torch.empty_like(source)
    return Ceilings(
        flops_per_s=2.0 * _CEILING_SIZE**3 / _median_s(lambda: a @ b),
        bytes_per_s=2.0 * _COPY_BYTES / _median_s(lambda: target.copy_(source)),
    )


def measure_rate(
    name: str, call: Callable[[], object], flops: float, num_bytes: float, ceilings: Ceilings
) -> Rate:
    """Time a call; its work tells which ceiling binds it."""
    return rate_of(name, _median_s(call), flops, num_bytes, ceilings)


def rate_of(name: str, seconds: float, flops: float, num_bytes: float, ceilings: Ceilings) -> Rate:
    """Tell what a call achieved that took so long."""
    is_arithmetic = flops / ceilings.flops_per_s > num_bytes / ceilings.bytes_per_s
    work, ceiling = (
        (flops, ceilings.flops_per_s) if is_arithmetic else (num_bytes, ceilings.bytes_per_s)
    )
    return Rate(
        name=name,
        seconds=seconds,
        flops=flops,
        num_bytes=num_bytes,
        ceiling="flops" if is_arithmetic else "bytes",
        achieved_per_s=work / seconds,
        share=work / seconds / ceiling,
    )


def measure_product(
    name: str, call: Callable[[], object], size: tuple[int, int, int], ceilings: Ceilings
) -> Rate:
    """Time a product of 16-bit matrices of so many rows, columns and terms of each sum."""
    rows, n, k = size
    num_bytes = 2.0 * (rows * k + n * k + rows * n)
    return measure_rate(f"{name} {rows}x{n}x{k}", call, 2.0 * rows * n * k, num_bytes, ceilings)


def random_half(*shape: int) -> torch.Tensor:
    """Return normal numbers in bfloat16."""
    return torch.randn(*shape, device=GPU, dtype=torch.bfloat16)


def _median_s(call: Callable[[], object]) -> float:
    return triton.testing.do_bench(call, warmup=20, rep=80, return_mode="median") / 1000
