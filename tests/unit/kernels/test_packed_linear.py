"""A weight packed once multiplies as the plain one does, to the last bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_flowprefill.kernels.cpu.packed_linear import can_pack, pack_weight, packed_linear
from torch.nn.functional import linear

pytestmark = pytest.mark.skipif(
    not can_pack(torch.empty(1, 1, dtype=torch.bfloat16)),
    reason="this processor multiplies no bfloat16 with oneDNN",
)
WIDTHS = st.sampled_from([1, 3, 16, 33, 64, 100, 192])


def random_bf16(*shape):
    """Return normally distributed bfloat16 values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 140), WIDTHS, WIDTHS)
def test_product_is_bitwise_that_of_the_plain_weight(num_rows, in_features, out_features):
    """Whatever the number of rows and the widths, aligned or not."""
    x, weight = random_bf16(num_rows, in_features), random_bf16(out_features, in_features)
    assert torch.equal(packed_linear(x, pack_weight(weight)), linear(x, weight))


def test_bias_is_added_in_full_precision():
    """Within one rounding of the float32 result: the sum is rounded once."""
    x, weight, bias = random_bf16(7, 64), random_bf16(48, 64), random_bf16(48)
    expected = linear(x.float(), weight.float(), bias.float())
    found = packed_linear(x, pack_weight(weight), bias).float()
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=2**-16)


def test_rows_of_another_tensor_and_more_dimensions():
    """Views with a stride between rows, and inputs of three dimensions, are taken as they are."""
    weight = random_bf16(48, 64)
    wide = random_bf16(6, 100)
    packed = pack_weight(weight)
    assert torch.equal(packed_linear(wide[:, :64], packed), linear(wide[:, :64], weight))
    cube = random_bf16(2, 3, 64)
    assert torch.equal(packed_linear(cube, packed), linear(cube, weight))


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
    packed, before = pack_weight(weight), linear(x, weight)
    weight.zero_()
    assert torch.equal(packed_linear(x, packed), before)
