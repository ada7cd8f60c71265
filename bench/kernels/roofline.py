"""What this machine reaches at best, and what a kernel reaches of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sglang_flowprefill.kernels.cpu.packed_linear import can_pack, pack_weight, packed_linear

from bench.kernels.cases import Case

_MEASURED_S = 0.4
_GEMM_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (512, 576, 3072), (4096, 1024, 4096))
_STREAM_BYTES = 256 << 20  # far more than any cache holds


@dataclass(frozen=True, slots=True)
class Roof:
    """Measured peaks.

    Attributes:
        flops_per_s: Of the fastest of several bfloat16 products with packed weights.
        bytes_per_s: Of copying a quarter of a gigabyte, reads and writes counted.
    """

    flops_per_s: float
    bytes_per_s: float

    def seconds(self, flops: float, num_bytes: float) -> float:
        """Return the least time by this roofline: that of whichever peak limits."""
        return max(flops / self.flops_per_s, num_bytes / self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Times of one case.

    Attributes:
        name: Of the case.
        family: Of the case.
        seconds: Fastest call.
        median_s: Median call.
        reference_s: Fastest call of the torch code; None if there is none.
        flops_per_s: Achieved.
        bytes_per_s: Achieved.
        roof_share: Least time by the roofline over the fastest call; above 1 for data that the
            caches hold.
        bound: What limits by the roofline: compute or memory.
    """

    name: str
    family: str
    seconds: float
    median_s: float
    reference_s: float | None
    flops_per_s: float
    bytes_per_s: float
    roof_share: float
    bound: str


def measure_roof() -> Roof:
    """Measure both peaks."""
    flops_per_s = 0.0
    for rows, width_in, width_out in _GEMM_SHAPES:
        x, weight = (torch.randn(n, width_in).bfloat16() for n in (rows, width_out))
        run = _product(x, weight)
        flops_per_s = max(flops_per_s, 2.0 * rows * width_in * width_out / fastest(run)[0])
    source = torch.ones(_STREAM_BYTES // 4)
    target = torch.empty_like(source)
    return Roof(flops_per_s, 2.0 * _STREAM_BYTES / fastest(lambda: target.copy_(source))[0])


def _product(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    if not can_pack(weight):
        return lambda: torch.nn.functional.linear(x, weight)
    packed = pack_weight(weight)
    return lambda: packed_linear(x, packed)


def measure_case(case: Case, roof: Roof) -> Measurement:
    """Time a kernel and its reference."""
    seconds, median_s = fastest(case.run)
    least_s = roof.seconds(case.flops, case.num_bytes)
    is_compute = least_s == case.flops / roof.flops_per_s
    return Measurement(
        case.name,
        case.family,
        seconds,
        median_s,
        None if case.reference is None else fastest(case.reference)[0],
        case.flops / seconds,
        case.num_bytes / seconds,
        least_s / seconds,
        "compute" if is_compute else "memory",
    )


def fastest(
    run: Callable[[], object],
    measured_s: float = _MEASURED_S,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Call for a while after one call to warm up; return the fastest and the median seconds."""
    run()
    times: list[float] = []
    end_s = clock() + measured_s
    while not times or clock() < end_s:
        start_s = clock()
        run()
        times.append(clock() - start_s)
    times.sort()
    return times[0], times[len(times) // 2]
