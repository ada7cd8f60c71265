"""The doorbell on a real GPU: rung from the host while the kernel runs.

Run with ``python -m pytest -o addopts= -m "gpu or triton" tests/gpu tests/triton``.
"""

import time

import pytest
import torch
from sglang_flowprefill.kernels.triton.doorbell import Doorbell
from sglang_flowprefill.kernels.triton.doorbell_gemm import DoorbellGemm

from bench.gpu.tile_shapes import TILE_SHAPES

pytestmark = pytest.mark.gpu

NUM_ROWS, N, K = 32_768, 28_672, 4096  # some 10 ms on an H100
RING_AFTER_S = 0.002


@pytest.fixture(scope="module")
def operands():
    """Return the gate and up projection of a long prompt."""
    torch.manual_seed(5)
    x = torch.randn(NUM_ROWS, K, device="cuda", dtype=torch.bfloat16)
    return x, torch.randn(N, K, device="cuda", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def doorbell():
    """Return a bell that no test leaves rung."""
    return Doorbell(torch.device("cuda"))


@pytest.fixture(scope="module")
def whole(operands, doorbell):
    """Return the uninterrupted product."""
    gemm = DoorbellGemm(*operands, doorbell)
    gemm.launch()
    assert gemm.is_complete
    return gemm.output


@pytest.fixture
def gemm(operands, doorbell):
    """Return a product that has not begun; its output is poisoned."""
    gemm = DoorbellGemm(*operands, doorbell)
    gemm.output.fill_(float("nan"))
    torch.cuda.synchronize()
    return gemm


def test_the_product_is_right(operands, whole):
    """Some rows against float64, within one rounding and the rounding of sums."""
    x, weight = operands
    for rows in (slice(0, 128), slice(16_000, 16_128), slice(NUM_ROWS - 128, NUM_ROWS)):
        exact = x[rows].double() @ weight.double().T
        bound = 2**-8 * exact.abs() + (K + 1) * 2**-23 * (
            x[rows].double().abs() @ weight.double().abs().T
        )
        assert (whole[rows] - exact).abs().le(bound).all()
        error = (whole[rows] - exact).norm() / exact.norm()
        assert error < 4e-3


def test_rung_before_the_launch_each_program_does_a_tile_or_two(gemm, doorbell, whole):
    """The bell is seen, and progress is made; resumed, the result is bitwise the whole."""
    doorbell.ring()
    gemm.launch()
    assert gemm.num_programs <= gemm.num_tiles_done <= 2 * gemm.num_programs
    doorbell.clear()
    gemm.launch()
    assert gemm.is_complete
    assert torch.equal(gemm.output, whole)


def test_rung_while_it_runs_few_more_tiles_are_done(gemm, doorbell, whole):
    """The one it is at, one more until all know, one to spare; resumed, bitwise the whole."""
    counted = torch.zeros_like(gemm._progress, device="cpu", pin_memory=True)
    aside = torch.cuda.Stream()
    gemm.launch()
    time.sleep(RING_AFTER_S)
    doorbell.ring()
    with torch.cuda.stream(aside):
        counted.copy_(gemm._progress, non_blocking=True)
    aside.synchronize()
    torch.cuda.current_stream().synchronize()
    doorbell.clear()
    num_done = gemm.num_tiles_done
    assert gemm.num_programs <= num_done < gemm.num_tiles, "it did not run, or was not stopped"
    assert num_done <= int(counted[1:].sum()) + 3 * gemm.num_programs
    gemm.launch()
    assert gemm.is_complete
    assert torch.equal(gemm.output, whole)


@pytest.mark.parametrize("name", TILE_SHAPES)
def test_every_tile_shape_that_the_bench_measures_is_right(operands, doorbell, name):
    """Stopped once and resumed, within one rounding and the rounding of sums."""
    x, weight = (operand[: 128 * 20 + 8] for operand in operands)
    gemm = DoorbellGemm(x, weight, doorbell, TILE_SHAPES[name])
    gemm.output.fill_(float("nan"))
    doorbell.ring()
    gemm.launch()
    torch.cuda.synchronize()
    doorbell.clear()
    gemm.launch()
    assert gemm.is_complete
    exact = (x.float() @ weight.float().T).double()
    assert (gemm.output - exact).norm() / exact.norm() < 4e-3


def test_stopped_again_and_again_it_is_bitwise_the_whole(gemm, doorbell, whole):
    """A few hundred microseconds a time."""
    num_launches = 0
    while not gemm.is_complete:
        gemm.launch()
        num_launches += 1
        time.sleep(0.0005)
        doorbell.ring()
        torch.cuda.synchronize()
        doorbell.clear()
    assert num_launches > 2
    assert torch.equal(gemm.output, whole)


def test_two_products_take_turns(operands, doorbell, whole):
    """Each stopped while the other goes on; neither sees the other's tiles."""
    gemms = [DoorbellGemm(*operands, doorbell) for _ in range(2)]
    while not all(gemm.is_complete for gemm in gemms):
        for gemm in gemms:
            gemm.launch()
            time.sleep(0.001)
            doorbell.ring()
            torch.cuda.synchronize()
            doorbell.clear()
    for gemm in gemms:
        assert torch.equal(gemm.output, whole)
