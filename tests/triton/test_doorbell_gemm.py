"""The matrix product that stops at a tile: every stop, any shape, nothing lost or done twice."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interpreter import IS_INTERPRETED, odd_sizes
from sglang_flowprefill.kernels.triton import doorbell_gemm
from sglang_flowprefill.kernels.triton.doorbell import Doorbell
from sglang_flowprefill.kernels.triton.doorbell_gemm import DoorbellGemm, TileShape, reference
from triton.tools.tensor_descriptor import TensorDescriptor

pytestmark = [
    pytest.mark.triton,
    # Triton's interpreter, of a loop whose end is an argument of the kernel.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]

SMALL_TILE = TileShape(rows=16, columns=16, depth=16, num_warps=4, num_stages=2)


@pytest.fixture(scope="module")
def doorbell(device):
    """Return a bell that no test leaves rung."""
    return Doorbell(device)


def operands(num_rows, n, k, dtype, device):
    """Return ``x`` and ``weight`` of normal numbers."""
    generator = torch.Generator().manual_seed(num_rows * n + k)
    x, weight = (torch.randn(size, k, generator=generator).to(dtype) for size in (num_rows, n))
    return x.to(device), weight.to(device)


def gemm_of(x, weight, doorbell):
    """Return a product whose output is poisoned."""
    gemm = DoorbellGemm(x, weight, doorbell, SMALL_TILE)
    gemm.output.fill_(math.nan)
    return gemm


def run_to_the_end(gemm, doorbell):
    """Launch with the bell rung until nothing is left; return how many tiles each launch did."""
    done = [0]
    while not gemm.is_complete:
        doorbell.ring()
        gemm.launch()
        done.append(gemm.num_tiles_done)
        doorbell.clear()
    return [after - before for before, after in pairwise(done)]


@odd_sizes
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_product_is_within_the_stated_bound(device, doorbell, steps, num_rows, n, k, dtype):
    """Odd sizes: one rounding, and k + 1 steps of float32 of the absolute product."""
    x, weight = operands(num_rows, n, k, dtype, device)
    gemm = gemm_of(x, weight, doorbell)
    gemm.launch()
    assert gemm.is_complete
    exact = x.double() @ weight.double().T
    bound = steps[dtype] * exact.abs() + (k + 1) * 2**-23 * (
        x.double().abs() @ weight.double().abs().T
    )
    assert (gemm.output - exact).abs().le(bound).all()


def test_the_reference_is_the_exact_product_rounded_once(device):
    """What benches and GPU tests compare with."""
    x, weight = operands(9, 5, 33, torch.bfloat16, device)
    assert torch.equal(reference(x, weight), (x.double() @ weight.double().T).bfloat16())


@odd_sizes
@given(st.integers(1, 120), st.integers(1, 60), st.integers(1, 40), st.sampled_from([1, 3]))
def test_stopped_at_every_tile_it_is_bitwise_the_uninterrupted_product(
    device, doorbell, num_rows, n, k, num_programs
):
    """Every launch makes progress: by exactly a tile where one program runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doorbell_gemm, "_num_programs", lambda _device, _tile: num_programs)
        check_every_stop(device, doorbell, num_rows, n, k, num_programs)


def check_every_stop(device, doorbell, num_rows, n, k, num_programs):
    """Compare a product that is stopped as often as can be with one that is not."""
    x, weight = operands(num_rows, n, k, torch.float32, device)
    whole = gemm_of(x, weight, doorbell)
    whole.launch()
    stopped = gemm_of(x, weight, doorbell)
    per_launch = run_to_the_end(stopped, doorbell)
    assert min(per_launch) >= 1
    # On a GPU some programs may ask before another has heard the bell.
    assert max(per_launch) <= num_programs * (1 if IS_INTERPRETED else 2)
    assert sum(per_launch) == stopped.num_tiles
    assert torch.equal(stopped.output, whole.output)


def test_a_stop_leaves_the_tiles_after_it_alone(device, doorbell, monkeypatch):
    """Each program has done the first so many of its own tiles, and no other was written."""
    monkeypatch.setattr(doorbell_gemm, "_num_programs", lambda _device, _tile: 3)
    x, weight = operands(16 * 20, 16, 16, torch.float32, device)
    gemm = gemm_of(x, weight, doorbell)
    doorbell.ring()
    gemm.launch()
    doorbell.clear()
    done = gemm._progress[1:].tolist()
    assert min(done) >= 1
    assert sum(done) == gemm.num_tiles_done < 20
    is_written = ~gemm.output.isnan().reshape(20, 16 * 16).any(dim=1)
    assert is_written.tolist() == [tile // 3 < done[tile % 3] for tile in range(20)]


@pytest.mark.parametrize(("num_rows", "n", "k"), [(1, 8, 8), (45, 72, 40), (64, 64, 64)])
def test_bulk_copies_give_the_bits_that_loads_give(device, doorbell, num_rows, n, k):
    """Also where tiles reach beyond the operands; stopped and resumed as well."""
    x, weight = operands(num_rows, n, k, torch.bfloat16, device)
    by_loads = DoorbellGemm(x, weight, doorbell, replace(SMALL_TILE, copies_in_bulk=False))
    by_loads.launch()
    in_bulk = gemm_of(x, weight, doorbell)
    assert isinstance(in_bulk._operands[0], TensorDescriptor)
    run_to_the_end(in_bulk, doorbell)
    assert torch.equal(in_bulk.output, by_loads.output)


@pytest.mark.parametrize(
    "misfit", ["rows of x", "rows of the weight", "rows of the output", "address"]
)
def test_operands_that_cannot_be_copied_in_bulk_are_loaded(device, doorbell, misfit):
    """Whatever is not at a multiple of 16 bytes."""
    x, weight = operands(
        20, 23 if misfit == "rows of the output" else 24, 32, torch.bfloat16, device
    )
    if misfit == "rows of x":
        x = torch.cat((x, x[:, :1]), dim=1)[:, :32]
    if misfit == "rows of the weight":
        weight = torch.cat((weight, weight[:, :1]), dim=1)[:, :32]
    if misfit == "address":
        x, weight = x[:, 1:25], weight[:, 1:25]
    gemm = gemm_of(x, weight, doorbell)
    assert not isinstance(gemm._operands[0], TensorDescriptor)
    gemm.launch()
    torch.testing.assert_close(gemm.output, reference(x, weight), rtol=2e-2, atol=2e-2)


def test_launching_a_complete_product_changes_nothing(device, doorbell):
    """A stop that came too late is resumed like any other."""
    x, weight = operands(40, 40, 20, torch.float32, device)
    gemm = gemm_of(x, weight, doorbell)
    gemm.launch()
    output = gemm.output.clone()
    gemm.output[0, 0] = 7.0
    gemm.launch()
    assert gemm.output[0, 0] == 7.0
    assert torch.equal(gemm.output[1:], output[1:])


def test_products_that_share_a_bell_do_not_disturb_one_another(device, doorbell):
    """One stops; another runs in between; the first goes on."""
    (x, weight), (other_x, other_weight) = (
        operands(rows, 50, 30, torch.float32, device) for rows in (90, 70)
    )
    alone = gemm_of(x, weight, doorbell)
    alone.launch()
    stopped, other = gemm_of(x, weight, doorbell), gemm_of(other_x, other_weight, doorbell)
    doorbell.ring()
    stopped.launch()
    doorbell.clear()
    other.launch()
    assert other.is_complete
    stopped.launch()
    assert torch.equal(stopped.output, alone.output)


def test_strides_between_rows_are_respected(device, doorbell):
    """The rows of a larger matrix, as a row tile or a fused projection gives them."""
    x, weight = operands(30, 20, 40, torch.float32, device)
    wide = torch.zeros(30, 64, device=device)
    wide[:, :40] = x
    gemm, strided = gemm_of(x, weight, doorbell), gemm_of(wide[:, :40], weight, doorbell)
    gemm.launch()
    strided.launch()
    assert torch.equal(gemm.output, strided.output)


def test_misfitting_operands_are_refused(device, doorbell):
    """With what did not fit."""
    x, weight = operands(8, 8, 16, torch.float32, device)
    for bad_x, bad_weight, message in (
        (x, weight[:, :8], r"expected \[rows, k\]"),
        (x[:0], weight, "nothing to compute"),
        (x, weight.bfloat16(), "dtypes differ"),
        (x.T.contiguous().T, weight, "contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            DoorbellGemm(bad_x, bad_weight, doorbell)
