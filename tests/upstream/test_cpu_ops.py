"""Compiled ops pinned on SGLang's modules give what SGLang's own torch code gives."""

import pytest
import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang_flowprefill.kernels.cpu.native import load_native

from sglang_flowprefill.adapter.cpu_ops import use_compiled_ops

pytestmark = pytest.mark.skipif(load_native() is None, reason="no compiled kernels here")
WIDTH, DIM = 192, 64


@pytest.fixture
def ops():
    """One module of each kind, pinned."""
    rope = RotaryEmbedding(DIM, DIM, 100, 10_000, is_neox_style=True, dtype=torch.bfloat16)
    modules = torch.nn.ModuleDict(
        {"norm": RMSNorm(WIDTH).to(torch.bfloat16), "silu": SiluAndMul(), "rope": rope}
    )
    torch.nn.init.normal_(modules["norm"].weight)
    assert use_compiled_ops(modules) == 3
    return modules


def close(result, expected):
    """Assert equality up to one bfloat16 step."""
    torch.testing.assert_close(result, expected, atol=2**-8, rtol=2**-7)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norm_with_and_without_residual(ops, dtype):
    """Also for a dtype that the kernel does not take."""
    norm = ops["norm"]
    x, residual = torch.randn(2, 7, WIDTH, dtype=dtype)
    close(norm(x), norm.forward_native(x))
    expected = norm.forward_native(x, residual.clone())
    for found, wanted in zip(norm(x, residual.clone()), expected, strict=True):
        close(found, wanted)


@torch.no_grad()
def test_arguments_left_out_in_so_many_words_change_nothing(ops, monkeypatch):
    """SGLang passes None by position and by name; the kernel runs all the same."""
    norm = ops["norm"]
    monkeypatch.setattr(norm, "forward_native", None)
    x, residual = torch.randn(2, 7, WIDTH).bfloat16()
    assert len(norm(x, residual, None, quant_linear=None)) == 2


@pytest.mark.parametrize("kind", ["norm", "silu", "rope"])
def test_what_is_pinned_is_what_runs(ops, kind):
    """SGLang calls the method that ``_forward_method`` names; renamed, kernels would sit unused."""
    ops[kind]._forward_method = lambda x: ("pinned", x)
    assert ops[kind]("input") == ("pinned", "input")


@torch.no_grad()
def test_silu_and_rope(ops):
    """Activation and rotary embedding."""
    x = torch.randn(5, 2 * WIDTH).bfloat16()
    close(ops["silu"](x), ops["silu"].forward_native(x))
    query, key = torch.randn(5, 3 * DIM).bfloat16(), torch.randn(5, DIM).bfloat16()
    positions = torch.tensor([0, 99, 5, 5, 17])
    expected = ops["rope"].forward_native(positions, query.clone(), key.clone())
    for found, wanted in zip(ops["rope"](positions, query, key), expected, strict=True):
        close(found, wanted)
