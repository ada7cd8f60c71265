"""Compiled ops pinned on SGLang's modules give what SGLang's own torch code gives."""

import pytest
import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang_flowprefill.kernels.cpu.native import load_native

from sglang_flowprefill.adapter.model.cpu_ops import use_compiled_ops, write_kv

pytestmark = pytest.mark.skipif(load_native() is None, reason="no compiled kernels here")
WIDTH, DIM = 192, 64


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def dtype(request):
    """Of weights and inputs."""
    return request.param


@pytest.fixture
def ops(dtype):
    """One module of each kind, pinned."""
    rope = RotaryEmbedding(DIM, DIM, 100, 10_000, is_neox_style=True, dtype=dtype)
    modules = torch.nn.ModuleDict(
        {"norm": RMSNorm(WIDTH).to(dtype), "silu": SiluAndMul(), "rope": rope}
    )
    torch.nn.init.normal_(modules["norm"].weight)
    assert use_compiled_ops(modules) == 3
    return modules


def close(result, expected):
    """Assert equality up to one bfloat16 step, or some of float32."""
    is_float32 = result.dtype == torch.float32
    atol, rtol = (2**-20, 2**-20) if is_float32 else (2**-8, 2**-7)
    torch.testing.assert_close(result, expected, atol=atol, rtol=rtol)


@torch.no_grad()
@pytest.mark.parametrize("input_dtype", [torch.bfloat16, torch.float32])
def test_norm_with_and_without_residual(ops, input_dtype):
    """Also for inputs of another dtype than the weight, which the kernel does not take."""
    norm = ops["norm"]
    x, residual = torch.randn(2, 7, WIDTH, dtype=input_dtype)
    close(norm(x), norm.forward_native(x))
    expected = norm.forward_native(x, residual.clone())
    for found, wanted in zip(norm(x, residual.clone()), expected, strict=True):
        close(found, wanted)


@torch.no_grad()
def test_arguments_left_out_in_so_many_words_change_nothing(ops, dtype, monkeypatch):
    """SGLang passes None by position and by name; the kernel runs all the same."""
    norm = ops["norm"]
    monkeypatch.setattr(norm, "forward_native", None)
    x, residual = torch.randn(2, 7, WIDTH).to(dtype)
    assert len(norm(x, residual, None, quant_linear=None)) == 2


@pytest.mark.parametrize("kind", ["norm", "silu", "rope"])
def test_what_is_pinned_is_what_runs(ops, kind):
    """SGLang calls the method that ``_forward_method`` names; renamed, kernels would sit unused."""
    ops[kind]._forward_method = lambda x: ("pinned", x)
    assert ops[kind]("input") == ("pinned", "input")


@torch.no_grad()
def test_silu_and_rope(ops, dtype):
    """Activation and rotary embedding."""
    x = torch.randn(5, 2 * WIDTH).to(dtype)
    close(ops["silu"](x), ops["silu"].forward_native(x))
    query, key = torch.randn(5, 3 * DIM).to(dtype), torch.randn(5, DIM).to(dtype)
    positions = torch.tensor([0, 99, 5, 5, 17])
    expected = ops["rope"].forward_native(positions, query.clone(), key.clone())
    for found, wanted in zip(ops["rope"](positions, query, key), expected, strict=True):
        close(found, wanted)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.float16])
def test_keys_and_values_are_written_whoever_writes(cache_dtype):
    """Where the kernel cannot write SGLang does, with the arguments that it was called with."""
    keys, values = torch.randn(2, 3, 2, 16)
    cached = torch.zeros(2, 5, 2, 16, dtype=cache_dtype)
    slots = torch.tensor([4, 0, 2])
    calls = []

    def upstream(k, v, k_cache, v_cache, indices, row_dim):
        calls.append(row_dim)
        k_cache[indices], v_cache[indices] = k.to(cache_dtype), v.to(cache_dtype)

    write_kv(upstream, keys, values, *cached, slots, row_dim=32)
    assert calls == ([] if cache_dtype == torch.float32 else [32])
    assert torch.equal(cached[:, slots], torch.stack((keys, values)).to(cache_dtype))
