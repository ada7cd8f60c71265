"""A weight packed once multiplies as the plain one does, and each row by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_flowprefill.kernels.cpu import packed_linear as module
from sglang_flowprefill.kernels.cpu.native import TARGETS, load_native
from sglang_flowprefill.kernels.cpu.packed_linear import can_pack, pack_weight, packed_linear
from torch.nn.functional import linear

ONEDNN = "onednn"
WIDTHS = st.sampled_from([1, 2, 3, 16, 33, 64, 100, 192, 576, 1040])


@pytest.fixture(params=[target.name for target in TARGETS] + [ONEDNN], autouse=True, scope="module")
def multiplier(request):
    """Every multiplier in turn. Skipped where it cannot be had on this machine."""
    kernels = None if request.param == ONEDNN else load_native(request.param)
    if kernels is None and request.param != ONEDNN:
        pytest.skip(f"no compiler, or this processor is not one for {request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_native", lambda: kernels)
        patch.setattr(module, "has_amx", lambda: False)
        if not can_pack(random_bf16(16, 16)):
            pytest.skip("this processor multiplies no bfloat16 with oneDNN")
        yield request.param


def random_bf16(*shape):
    """Return normally distributed bfloat16 values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def assert_is_product(found, x, weight, bias=None):
    """Compare with float64: one rounding, and the error of a float32 sum of so many terms."""
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    magnitude = linear(wide[0].abs(), wide[1].abs())
    error = (found.double() - linear(*wide)).abs()
    num_terms = weight.shape[1] + 1
    assert (error <= 2**-8 * linear(*wide).abs() + num_terms * 2**-24 * magnitude).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 140), WIDTHS, WIDTHS)
def test_product_is_rounded_once(num_rows, in_features, out_features):
    """Whatever the number of rows and the widths, aligned or not."""
    x, weight = random_bf16(num_rows, in_features), random_bf16(out_features, in_features)
    if not can_pack(weight):
        return
    assert_is_product(packed_linear(x, pack_weight(weight)), x, weight)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 140), st.data())
def test_a_row_does_not_depend_on_the_others(multiplier, num_rows, data):
    """Cut anywhere, the rows give the same bits: a tile of a prefill is the prefill."""
    if multiplier == ONEDNN:
        pytest.skip("oneDNN chooses its kernel by the number of rows")
    cut = data.draw(st.integers(1, num_rows - 1))
    x, weight = random_bf16(num_rows, 576), pack_weight(random_bf16(208, 576))
    parts = [packed_linear(part, weight) for part in (x[:cut], x[cut:])]
    assert torch.equal(packed_linear(x, weight), torch.cat(parts))


def test_bias_is_added_in_full_precision():
    """Within one rounding of the float32 result: the sum is rounded once."""
    x, weight, bias = random_bf16(7, 64), random_bf16(48, 64), random_bf16(48)
    assert_is_product(packed_linear(x, pack_weight(weight), bias), x, weight, bias)


def test_rows_of_another_tensor_and_more_dimensions():
    """Views with a stride between rows or in them, and inputs of three dimensions, are taken."""
    weight = random_bf16(48, 64)
    wide = random_bf16(6, 200)
    packed = pack_weight(weight)
    assert_is_product(packed_linear(wide[:, :64], packed), wide[:, :64], weight)
    assert_is_product(packed_linear(wide[:, :128:2], packed), wide[:, :128:2], weight)
    cube = random_bf16(2, 3, 64)
    assert_is_product(packed_linear(cube, packed), cube, weight)


@pytest.mark.parametrize(
    "weight",
    [torch.empty(4, 4), torch.empty(4, 4, dtype=torch.int8), torch.empty(4, dtype=torch.bfloat16)],
    ids=["float32", "quantised", "vector"],
)
def test_other_weights_are_not_packed(weight):
    """Only bfloat16 matrices are: elsewhere another library multiplies."""
    assert not can_pack(weight)


def test_a_packed_weight_is_a_copy():
    """It does not follow its origin: whoever changes that has to pack again."""
    x, weight = random_bf16(3, 64), random_bf16(48, 64)
    packed = pack_weight(weight)
    before = packed_linear(x, packed)
    weight.zero_()
    assert torch.equal(packed_linear(x, packed), before)


def test_amx_is_left_to_onednn(multiplier, monkeypatch):
    """The compiled kernel does not use it, and oneDNN is several times as fast with it."""
    monkeypatch.setattr(module, "has_amx", lambda: True)
    weight = random_bf16(48, 64)
    if not can_pack(weight):
        pytest.skip("this processor multiplies no bfloat16 with oneDNN")
    assert pack_weight(weight).native is None, multiplier
