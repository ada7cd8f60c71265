"""Building, choosing and loading the compiled kernels, and the row-wise ones against torch."""

import pytest
import torch
from sglang_flowprefill.kernels.cpu import native as native_module
from sglang_flowprefill.kernels.cpu.native import (
    TARGET_VARIABLE,
    TARGETS,
    can_write_kv,
    load_native,
)
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


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize(("num_tokens", "width"), [(1, 16), (3, 48), (7, 576), (130, 2048)])
def test_float32_norm_is_within_its_bound(native, num_tokens, width, has_residual):
    """2^-20 relative against float64, on odd sizes too; the sum is bitwise torch's."""
    torch.manual_seed(6)
    x, residual = torch.randn(2, num_tokens, width)
    weight = torch.randn(width)
    total = (x + residual if has_residual else x).double()
    expected = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-5) * weight
    updated = residual.clone() if has_residual else None
    result = native.add_rms_norm(x, updated, weight, 1e-5, rounds_first=True)
    torch.testing.assert_close(result, expected.float(), atol=0.0, rtol=2**-20)
    if updated is not None:
        assert torch.equal(updated, x + residual)


@pytest.mark.parametrize(("num_tokens", "width"), [(1, 16), (33, 96), (200, 1536)])
def test_float32_silu_and_mul_is_within_its_bound(native, num_tokens, width):
    """(16 + 2 abs(gate)) 2^-24 relative against float64, on odd sizes, also far out."""
    torch.manual_seed(7)
    x = torch.randn(num_tokens, 2 * width) * 20
    gate, up = x.double().chunk(2, dim=-1)
    expected = silu(gate) * up
    error = (native.silu_and_mul(x) - expected).abs()
    assert (error <= (16 + 2 * gate.abs()) * 2**-24 * expected.abs() + 1e-30).all()


@pytest.mark.parametrize("num_tokens", [1, 5, 97])
def test_float32_rope_is_within_its_bound(native, num_tokens):
    """2^-22 of the largest product, whichever way the two are summed."""
    torch.manual_seed(8)
    dim = 64
    cos_sin, positions = torch.randn(100, dim), torch.randint(100, (num_tokens,))
    query, key = torch.randn(num_tokens, 3 * dim), torch.randn(num_tokens, dim)
    cos, sin = cos_sin[positions].double()[:, None].chunk(2, dim=-1)
    expected = []
    for x in (query, key):
        first, second = x.double().view(num_tokens, -1, dim).chunk(2, dim=-1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        expected.append(rotated.view(num_tokens, -1))
    largest = 2 * max(query.abs().max(), key.abs().max()) * cos_sin.abs().max()
    native.rope_(positions, query, key, cos_sin)
    for found, wanted in zip((query, key), expected, strict=True):
        assert (found - wanted).abs().max() <= 2**-22 * largest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize(("num_tokens", "num_heads", "dim"), [(1, 1, 16), (5, 3, 64), (900, 3, 80)])
def test_keys_and_values_land_in_their_slots(native, dtype, num_tokens, num_heads, dim):
    """As torch's indexed write puts them, from columns of a wider tensor; nothing else moves."""
    torch.manual_seed(9)
    qkv = torch.randn(num_tokens, 4 * num_heads * dim).to(dtype)
    keys, values = (
        qkv[:, start * num_heads * dim :][:, : num_heads * dim].view(num_tokens, num_heads, dim)
        for start in (2, 3)
    )
    cached = torch.randn(2, num_tokens + 7, num_heads, dim).to(dtype)
    slots = torch.randperm(num_tokens + 7)[:num_tokens]
    expected = cached.clone()
    expected[0, slots], expected[1, slots] = keys, values
    assert can_write_kv(keys, values, *cached, slots)
    native.write_kv(keys, values, *cached, slots)
    assert torch.equal(cached, expected)


def test_what_is_not_rows_of_one_dtype_is_not_written():
    """Other dtypes, widths, slot numbers or layouts are left to SGLang."""
    keys, cached, slots = torch.zeros(4, 2, 16), torch.zeros(9, 2, 16), torch.arange(4)
    assert can_write_kv(keys, keys, cached, cached, slots)
    assert not can_write_kv(keys, keys, cached.half(), cached, slots)
    assert not can_write_kv(keys, keys[..., :8], cached, cached[..., :8], slots)
    assert not can_write_kv(keys, keys, cached, cached, slots.int())
    assert not can_write_kv(keys, keys, cached, cached, slots[:3])
    assert not can_write_kv(keys.view(4, 32), keys.view(4, 32), cached, cached, slots)
    transposed = cached.transpose(1, 2).contiguous().transpose(1, 2)
    assert not can_write_kv(keys, keys, transposed, cached, slots)


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


@pytest.fixture
def fake_compiler(monkeypatch, tmp_path):
    """A compiler that writes where it is told to, behind a wrapper's name."""
    script = tmp_path / "compiler"
    script.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho built > "$2"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", f"env LANG=C {script}")
    monkeypatch.setenv("SGLANG_FLOWPREFILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def test_a_compiler_may_be_a_command_with_arguments(fake_compiler):
    """``CXX="ccache g++"`` is what build systems set; the folder is the user's own."""
    library = native_module._built_library(TARGETS[1])
    assert library.read_text() == "built\n"
    assert fake_compiler.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in fake_compiler.iterdir()] == [library.name]


@pytest.mark.parametrize("writable", ["folder", "library"])
def test_code_that_somebody_else_could_have_written_is_not_run(fake_compiler, writable):
    """Its path can be guessed: whoever may write there could have put a program there."""
    library = native_module._built_library(TARGETS[1])
    (fake_compiler if writable == "folder" else library).chmod(0o777)
    with pytest.raises(PermissionError, match="can be written by others"):
        native_module._built_library(TARGETS[1])


def test_a_link_in_the_place_of_the_library_is_not_followed(fake_compiler, tmp_path):
    """It may lead anywhere."""
    library = native_module._built_library(TARGETS[1])
    library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(PermissionError, match="is a link"):
        native_module._built_library(TARGETS[1])
