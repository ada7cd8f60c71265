"""SGLang's unquantised layers multiply with weights packed once, and say the same."""

import pytest
import torch
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.logits_processor import should_apply_lm_head_quant_method
from sglang.srt.layers.quantization.unquant import (
    UnquantizedEmbeddingMethod,
    UnquantizedLinearMethod,
)
from sglang_flowprefill.kernels.cpu.packed_linear import can_pack

from sglang_flowprefill.adapter.model import packed_weights
from sglang_flowprefill.adapter.model.packed_weights import PackedWeights

pytestmark = pytest.mark.skipif(
    not can_pack(torch.empty(1, 1, dtype=torch.bfloat16)), reason="no bfloat16 products here"
)


def layer_of(dtype=torch.bfloat16):
    """Return one of SGLang's linear layers in a module, with random weights."""
    layer = ReplicatedLinear(64, 48, bias=False, params_dtype=dtype)
    torch.nn.init.normal_(layer.weight)
    return layer, torch.nn.ModuleDict({"layer": layer})


@torch.no_grad()
def test_a_packed_layer_gives_the_same_bits():
    """The layer's output is bitwise what it was."""
    layer, model = layer_of()
    x = torch.randn(5, 64).bfloat16()
    expected, _ = layer(x)
    packed = PackedWeights(model)
    assert (packed.num_layers, packed.num_bytes) == (1, 64 * 48 * 2)
    assert torch.equal(layer(x)[0], expected)
    assert layer(x[:0])[0].shape == (0, 48)


@torch.no_grad()
def test_new_weights_count_once_the_copies_are_forgotten():
    """``forget`` is what a weight update has to be followed by."""
    layer, model = layer_of()
    packed = PackedWeights(model)
    x = torch.randn(5, 64).bfloat16()
    layer(x)
    layer.weight.data.normal_()
    packed.forget()
    assert torch.equal(layer(x)[0], torch.nn.functional.linear(x, layer.weight))


def test_what_is_not_plain_bfloat16_stays_untouched():
    """Another dtype, and a method that SGLang chose for quantised weights."""

    class Quantised(UnquantizedLinearMethod):
        pass

    layer, model = layer_of(torch.float32)
    other, others = layer_of()
    other.quant_method = method = Quantised()
    assert PackedWeights(model).num_layers == PackedWeights(others).num_layers == 0
    assert type(layer.quant_method) is UnquantizedLinearMethod
    assert other.quant_method is method


def test_weights_stay_unpacked_where_memory_is_short(monkeypatch, caplog):
    """Copies that would take over a quarter of the memory left are not made, and it is said."""
    layer, model = layer_of()
    monkeypatch.setattr(packed_weights, "available_memory_bytes", lambda: 20_000)
    assert PackedWeights(model).num_layers == 0
    assert type(layer.quant_method) is UnquantizedLinearMethod
    assert "stay unpacked" in caplog.text


def test_sglang_lets_our_method_compute_the_logits():
    """By its name: that of its own unquantised method makes it multiply with the plain weight."""
    head = torch.nn.Linear(4, 4)
    assert should_apply_lm_head_quant_method(head, packed_weights._PackedLMHead())
    assert not should_apply_lm_head_quant_method(head, UnquantizedEmbeddingMethod())
