"""Row-range norm, activation and product: what they compute, and what they leave alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interpreter import odd_sizes
from sglang_flowprefill.kernels.triton import add_rms_norm, gemm_rows, silu_and_mul

pytestmark = pytest.mark.triton

EPSILON = 1e-5
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
rows_and_ranges = st.integers(1, 20).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n), min_size=2, max_size=2).map(sorted))
)


def random(*shape, dtype, device, seed=0):
    """Return normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(device)


@odd_sizes
@given(rows_and_ranges, st.integers(1, 700), dtypes)
def test_add_and_norm_match_torch_on_their_rows(device, steps, rows, width, dtype):
    """Any width and range: within one rounding, the sum bitwise on a GPU, other rows untouched."""
    num_rows, (start, stop) = rows
    x, residual = (random(num_rows, width, dtype=dtype, device=device, seed=s) for s in (1, 2))
    weight = random(width, dtype=dtype, device=device)
    normed, total = x.clone(), residual.clone()
    add_rms_norm.add_rms_norm_rows(normed, total, weight, epsilon=EPSILON, start=start, stop=stop)
    outside = torch.ones(num_rows, dtype=torch.bool)
    outside[start:stop] = False
    assert torch.equal(normed[outside], x[outside])
    assert torch.equal(total[outside], residual[outside])
    step = steps[dtype]
    exact_sum = x.double() + residual.double()
    assert (total - exact_sum)[start:stop].abs().le(step * exact_sum[start:stop].abs()).all()
    wide = total[start:stop].double()
    exact = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON) * weight.double()
    bound = (step + (width + 16) * 2**-24) * exact.abs() + 1e-30
    assert (normed[start:stop] - exact).abs().le(bound).all()


@odd_sizes
@given(rows_and_ranges, st.integers(1, 2100), dtypes)
def test_the_activation_matches_torch_on_its_rows(device, steps, rows, width, dtype):
    """Any width and range: within the stated bound, other rows untouched."""
    num_rows, (start, stop) = rows
    gate_up = random(num_rows, 2 * width, dtype=dtype, device=device)
    output = torch.full((num_rows, width), math.nan, dtype=dtype, device=device)
    silu_and_mul.silu_and_mul_rows(gate_up, output, start=start, stop=stop)
    assert output[:start].isnan().all()
    assert output[stop:].isnan().all()
    gate, up = gate_up.double()[start:stop].chunk(2, dim=-1)
    exact = gate * torch.sigmoid(gate) * up
    bound = (steps[dtype] + (16 + gate.abs()) * 2**-24) * exact.abs() + 1e-30
    assert (output[start:stop] - exact).abs().le(bound).all()


def test_tiles_of_norm_and_activation_are_bitwise_the_whole(device):
    """Wherever the cuts are: rows do not know of one another."""
    x, residual = (random(37, 300, dtype=torch.bfloat16, device=device, seed=s) for s in (1, 2))
    weight = random(300, dtype=torch.bfloat16, device=device)

    def run(*cuts):
        normed, total = x.clone(), residual.clone()
        activated = torch.empty(37, 150, dtype=x.dtype, device=device)
        for start, stop in zip((0, *cuts), (*cuts, 37), strict=True):
            add_rms_norm.add_rms_norm_rows(
                normed, total, weight, epsilon=EPSILON, start=start, stop=stop
            )
            silu_and_mul.silu_and_mul_rows(x, activated, start=start, stop=stop)
        return normed, total, activated

    for whole, tiled in zip(run(), run(1, 8, 8, 30), strict=True):
        assert torch.equal(whole, tiled)


@odd_sizes
@given(rows_and_ranges, st.integers(1, 50), st.integers(1, 50), dtypes)
def test_a_row_range_of_a_product_lands_in_place(device, rows, n, k, dtype):
    """Within one rounding of the whole product; other rows untouched."""
    num_rows, (start, stop) = rows
    x, weight = (random(size, k, dtype=dtype, device=device) for size in (num_rows, n))
    output = torch.full((num_rows, n), math.nan, dtype=dtype, device=device)
    gemm_rows.gemm_rows(x, weight, output, start=start, stop=stop)
    assert output[:start].isnan().all()
    assert output[stop:].isnan().all()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(
        output[start:stop],
        gemm_rows.reference(x, weight)[start:stop],
        rtol=tolerance,
        atol=tolerance * math.sqrt(k),
    )


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (3, 2)])
def test_a_range_outside_the_rows_is_refused(device, start, stop):
    """Rather than read or write somebody else's memory."""
    x = random(4, 8, dtype=torch.float32, device=device)
    with pytest.raises(ValueError, match="not within 4 rows"):
        add_rms_norm.add_rms_norm_rows(x, x.clone(), x[0], epsilon=EPSILON, start=start, stop=stop)
    with pytest.raises(ValueError, match="not within 4 rows"):
        silu_and_mul.silu_and_mul_rows(x, x[:, :4].clone(), start=start, stop=stop)
    with pytest.raises(ValueError, match="not within 4 rows"):
        gemm_rows.gemm_rows(x, x, x.new_empty(4, 4), start=start, stop=stop)


def test_misfitting_tensors_are_refused(device):
    """Shapes, dtypes and strides that the kernels would misread."""
    x = random(4, 8, dtype=torch.float32, device=device)
    norm = add_rms_norm.add_rms_norm_rows
    with pytest.raises(ValueError, match="expected"):
        norm(x, x[:3], x[0], epsilon=EPSILON, start=0, stop=1)
    with pytest.raises(ValueError, match="dtypes differ"):
        norm(x, x.bfloat16(), x[0], epsilon=EPSILON, start=0, stop=1)
    with pytest.raises(ValueError, match="contiguous"):
        norm(x.T, x.T.clone().T.T, x[:, 0].contiguous(), epsilon=EPSILON, start=0, stop=1)
    with pytest.raises(ValueError, match="expected"):
        silu_and_mul.silu_and_mul_rows(x, x, start=0, stop=1)
