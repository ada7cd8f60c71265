"""What the small things cost: an event, a boundary, a switch, a stop by the doorbell."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep

import torch
from sglang_flowprefill.kernels.triton.doorbell import Doorbell
from sglang_flowprefill.kernels.triton.doorbell_gemm import DoorbellGemm

from bench.gpu.device import GPU
from bench.gpu.llama import Shape
from sglang_flowprefill.executor import Checkpoint, Cursor, RunAhead
from sglang_flowprefill.executor.devices import CudaDevice

_NUM_CALLS = 2000
_NUM_STOPS = 40
_POLL_S = 20e-6
_NEVER_WAITS = 64  # in flight: an event needs longer to be done than a boundary takes


@dataclass(frozen=True, slots=True)
class SmallCosts:
    """Host seconds of one call each, medians of batches, on an idle device.

    Attributes:
        record_s: Record an event.
        query_s: Ask an event that is done.
        boundary_s: One bounded boundary: record, reuse, ask twice.
        unbounded_boundary_s: One boundary without a bound on run-ahead.
        switch_s: Leave a cursor and come back.
        poll_sleep_s: What a sleep of 20 us takes.
        launch_s: Launch of an empty kernel, on the host.
    """

    record_s: float
    query_s: float
    boundary_s: float
    unbounded_boundary_s: float
    switch_s: float
    poll_sleep_s: float
    launch_s: float


@dataclass(frozen=True, slots=True)
class DoorbellStop:
    """One product stopped from the host while it ran.

    Attributes:
        rung_after_s: From its launch to the bell.
        stop_s: From the bell to the moment at which the host sees the device idle.
        num_tiles_done: Tiles computed by then.
        num_tiles: All tiles.
        is_bitwise_equal: Resumed, it equals the uninterrupted product.
    """

    rung_after_s: float
    stop_s: float
    num_tiles_done: int
    num_tiles: int
    is_bitwise_equal: bool


class _NoState:
    def enter(self) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """Do nothing."""


def measure_small_costs() -> SmallCosts:
    """Measure all of them; leaves the device idle."""
    torch.cuda.synchronize()
    event = torch.cuda.Event()
    event.record()
    torch.cuda.synchronize()
    costs = SmallCosts(
        record_s=_per_call_s(event.record),
        query_s=_per_call_s(_query_of_done_event()),
        boundary_s=_boundary_s(RunAhead(CudaDevice(), _NEVER_WAITS)),
        unbounded_boundary_s=_boundary_s(None),
        switch_s=_switch_s(),
        poll_sleep_s=_per_call_s(lambda: sleep(_POLL_S), 200),
        launch_s=_per_call_s(_empty_kernel()),
    )
    torch.cuda.synchronize()
    return costs


def measure_doorbell_stops(shape: Shape, num_rows: int, seed: int) -> list[DoorbellStop]:
    """Ring at random moments of the longest product of a layer; resume; compare."""
    rng = random.Random(seed)
    x = torch.randn(num_rows, shape.hidden, device=GPU, dtype=torch.bfloat16)
    n = 2 * shape.intermediate
    weight = torch.randn(n, shape.hidden, device=GPU, dtype=torch.bfloat16)
    doorbell = Doorbell(GPU)
    whole = DoorbellGemm(x, weight, doorbell)
    whole.launch()
    torch.cuda.synchronize()
    start_s = perf_counter()
    DoorbellGemm(x, weight, doorbell).launch()
    torch.cuda.synchronize()
    whole_s = perf_counter() - start_s
    return [
        _stop_once(x, weight, doorbell, whole.output, rng.uniform(0.05, 0.9) * whole_s)
        for _ in range(_NUM_STOPS)
    ]


def _stop_once(
    x: torch.Tensor, weight: torch.Tensor, doorbell: Doorbell, whole: torch.Tensor, after_s: float
) -> DoorbellStop:
    gemm = DoorbellGemm(x, weight, doorbell)
    end = torch.cuda.Event()
    torch.cuda.synchronize()
    start_s = perf_counter()
    gemm.launch()
    end.record()
    while perf_counter() < start_s + after_s:
        pass
    rung_s = perf_counter()
    gemm.ring()
    while not end.query():
        pass
    stopped_s = perf_counter()
    gemm.clear()
    num_done = gemm.num_tiles_done
    gemm.launch()
    return DoorbellStop(
        rung_after_s=rung_s - start_s,
        stop_s=stopped_s - rung_s,
        num_tiles_done=num_done,
        num_tiles=gemm.num_tiles,
        is_bitwise_equal=torch.equal(gemm.output, whole),
    )


def _boundary_s(run_ahead: RunAhead | None) -> float:
    checkpoint = Checkpoint(lambda: False, run_ahead)
    seconds: list[float] = []

    def run() -> None:
        seconds.append(_per_call_s(checkpoint.reach))

    Cursor(run, checkpoint, _NoState()).resume()
    return seconds[0]


def _switch_s() -> float:
    checkpoint = Checkpoint(lambda: True)

    def run() -> None:
        while True:
            checkpoint.reach()

    cursor = Cursor(run, checkpoint, _NoState())
    cursor.resume()
    seconds = _per_call_s(cursor.resume)
    cursor.cancel()
    return seconds


def _query_of_done_event() -> Callable[[], object]:
    event = torch.cuda.Event()
    event.record()
    torch.cuda.synchronize()
    return event.query


def _empty_kernel() -> Callable[[], object]:
    tensor = torch.zeros(1, device=GPU)
    return tensor.zero_


def _per_call_s(call: Callable[[], object], num_calls: int = _NUM_CALLS) -> float:
    """Return the median over ten batches of the mean time of a call."""
    batches = []
    for _ in range(10):
        torch.cuda.synchronize()
        start_s = perf_counter()
        for _ in range(num_calls // 10):
            call()
        batches.append((perf_counter() - start_s) / (num_calls // 10))
    return median(batches)
