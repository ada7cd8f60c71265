"""Building, choosing and loading the compiled kernels, and the row-wise ones against torch."""

import pytest
import torch
from sglang_flowprefill.kernels.cpu import native as native_module
from sglang_flowprefill.kernels.cpu.native import TARGET_VARIABLE, TARGETS, load_native
from torch.nn.functional import silu

BEST, OTHER = (target.name for target in TARGETS)
ALL_FEATURES = frozenset().union(*(target.features for target in TARGETS))


@pytest.fixture(params=[BEST, OTHER])
def native(request):
    """The kernels as compiled for each target. Skipped where they cannot be built or run."""
    kernels = load_native(request.param)
    if kernels is None:
        pytest.skip(f"no compiler, or this processor is not one for {request.param}")
    return kernels


@pytest.fixture
def forgets():
    """What was loaded before and in a test counts for nobody else."""
    load_native.cache_clear()
    yield
    load_native.cache_clear()


@pytest.mark.parametrize("rounds_first", [False, True])
@pytest.mark.parametrize(("num_tokens", "width"), [(1, 16), (3, 576), (130, 2048)])
def test_add_rms_norm_equals_torch_but_for_the_last_bit(native, num_tokens, width, rounds_first):
    """Sum in place, norm returned; at most one bfloat16 step off per rounding."""
    torch.manual_seed(5)
    x, residual = torch.randn(2, num_tokens, width).bfloat16()
    weight = torch.randn(width).bfloat16()
    total = x.float() + residual.float()
    normed = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-5)
    expected = normed.bfloat16() * weight if rounds_first else (normed * weight).bfloat16()
    updated = residual.clone()
    result = native.add_rms_norm(x, updated, weight, 1e-5, rounds_first=rounds_first)
    assert torch.equal(updated, total.bfloat16())
    torch.testing.assert_close(result, expected, atol=0.0, rtol=2**-6 if rounds_first else 2**-7)
    alone = native.add_rms_norm(x, None, weight, 1e-5, rounds_first=rounds_first)
    assert alone.shape == x.shape


def test_silu_and_mul_equals_torch(native):
    """Both halves, rounded as torch's two operators round; also far out on both sides."""
    x = torch.randn(33, 2 * 96).bfloat16() * 20
    expected = silu(x[:, :96]) * x[:, 96:]
    torch.testing.assert_close(native.silu_and_mul(x), expected, atol=1e-30, rtol=2**-7)


def test_rope_rotates_in_place_as_torch_does(native):
    """Queries and keys inside one projection tensor, each at its own position."""
    cos_sin = torch.randn(100, 64).bfloat16()
    positions = torch.tensor([3, 99, 0, 41])
    qkv = torch.randn(4, 5 * 64).bfloat16()
    cos, sin = cos_sin[positions].chunk(2, dim=-1)

    def rotated(x):
        first, second = x.view(4, -1, 64).chunk(2, dim=-1)
        c, s = cos[:, None], sin[:, None]
        return torch.cat((first * c - second * s, second * c + first * s), dim=-1).view(4, -1)

    expected = torch.cat((rotated(qkv[:, :192]), rotated(qkv[:, 192:256]), qkv[:, 256:]), dim=-1)
    native.rope_(positions, qkv[:, :192], qkv[:, 192:256], cos_sin)
    assert torch.equal(qkv, expected)


@pytest.mark.usefixtures("forgets")
def test_without_a_compiler_there_are_none_and_it_is_said_once(monkeypatch, caplog, tmp_path):
    """Not at every call; what is missing is named."""
    monkeypatch.setenv("SGLANG_FLOWPREFILL_CACHE", str(tmp_path))
    monkeypatch.setattr(native_module, "_cpu_features", lambda: ALL_FEATURES)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert load_native() is None
    assert load_native() is None
    (message,) = [r.message for r in caplog.records if "slower" in r.message]
    assert "no C++ compiler" in message


@pytest.mark.usefixtures("forgets")
def test_a_processor_without_the_instructions_gets_plain_torch(monkeypatch, caplog):
    """The library is neither built nor loaded; what is missing is named."""
    monkeypatch.setattr(native_module, "_cpu_features", lambda: frozenset({"avx"}))
    assert load_native() is None
    assert "lacks avx2, fma" in caplog.text


@pytest.mark.usefixtures("forgets")
def test_the_best_target_that_the_processor_has_is_chosen(monkeypatch):
    """AVX2 where AVX-512 BF16 is missing; a name in the environment decides instead."""
    avx2 = TARGETS[1].features
    monkeypatch.setattr(native_module, "_cpu_features", lambda: avx2)
    assert native_module._choose(None).name == OTHER
    monkeypatch.setattr(native_module, "_cpu_features", lambda: ALL_FEATURES)
    assert native_module._choose(None).name == BEST
    assert native_module._choose(OTHER).name == OTHER


@pytest.mark.usefixtures("forgets")
@pytest.mark.parametrize(("value", "message"), [("torch", "is torch"), ("sse", "known are")])
def test_kernels_can_be_switched_off_by_name(monkeypatch, caplog, value, message):
    """``torch`` means none; an unknown name too, and the known ones are listed."""
    monkeypatch.setenv(TARGET_VARIABLE, value)
    assert load_native() is None
    assert message in caplog.text


@pytest.mark.usefixtures("forgets")
def test_a_compiler_that_fails_is_no_error(monkeypatch, tmp_path):
    """A broken compiler means plain torch code, not a server that does not start."""
    monkeypatch.setenv("SGLANG_FLOWPREFILL_CACHE", str(tmp_path))
    monkeypatch.setattr(native_module, "_cpu_features", lambda: ALL_FEATURES)
    monkeypatch.setenv("CXX", "/bin/false")
    assert load_native() is None
    assert not list((tmp_path / "kernels").glob("*.so"))
