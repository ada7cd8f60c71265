"""The compiled kernels against torch, on odd sizes. Skipped where they cannot be built."""

import math

import pytest
import torch
from sglang_flowprefill.kernels.cpu import native as native_module
from sglang_flowprefill.kernels.cpu.native import load_native
from sglang_flowprefill.kernels.cpu.prefill_attention import prefill_attention
from torch.nn.functional import scaled_dot_product_attention, silu

needs_native = pytest.mark.skipif(
    load_native() is None, reason="no compiler, or no AVX-512 BF16 on this processor"
)
NUM_SLOTS = 4000
SCALE = 0.125
# bfloat16 has 8 bits: half a step at 1 is 2**-9; probabilities and results are each rounded once.
TOLERANCE = 2**-7


def paged(num_keys, num_kv_heads, dim):
    """Return a cache of random keys and values, and a sequence scattered over it."""
    generator = torch.Generator().manual_seed(num_keys)
    keys, values = torch.randn(2, NUM_SLOTS, num_kv_heads, dim, generator=generator).bfloat16()
    return keys, values, torch.randperm(NUM_SLOTS, generator=generator)[:num_keys].int()


def reference(query, keys, values, slots, window_size=None):
    """Return the attention of the last positions in float32."""
    num_queries, num_keys = query.shape[0], slots.shape[0]
    rows = torch.arange(num_keys - num_queries, num_keys)[:, None]
    columns = torch.arange(num_keys)
    seen = columns <= rows
    if window_size is not None:
        seen &= columns >= rows - window_size
    k, v = (cache[slots].float().movedim(0, 1)[None] for cache in (keys, values))
    q = query.float().movedim(0, 1)[None]
    result = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=SCALE, enable_gqa=True)
    return result[0].movedim(0, 1)


def attend(
    query, keys, values, slots, reach=lambda: None, window_size=None, max_tile_pairs=math.inf
):
    """Run ``prefill_attention`` into a buffer of NaNs."""
    output = torch.full(query.shape, math.nan, dtype=query.dtype)
    prefill_attention(
        query,
        keys,
        values,
        slots,
        output,
        scale=SCALE,
        sliding_window_size=window_size,
        max_tile_pairs=max_tile_pairs,
        reach=reach,
    )
    return output


@needs_native
@pytest.mark.parametrize("window_size", [None, 0, 70])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(9, 3), (4, 4), (7, 1)])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(
    ("num_cached", "num_new"), [(0, 1), (0, 63), (0, 130), (5, 1), (127, 65), (700, 33), (64, 600)]
)
def test_attention_is_as_close_as_bfloat16_allows(
    num_cached, num_new, dim, num_heads, num_kv_heads, window_size
):
    """Odd lengths, cached prefixes, grouped heads and sliding windows match float32 attention."""
    keys, values, slots = paged(num_cached + num_new, num_kv_heads, dim)
    query = torch.randn(num_new, num_heads, dim).bfloat16()
    expected = reference(query, keys, values, slots, window_size)
    result = attend(query, keys, values, slots, window_size=window_size)
    torch.testing.assert_close(result.float(), expected, atol=TOLERANCE, rtol=TOLERANCE)


@needs_native
@pytest.mark.parametrize(("max_tile_pairs", "num_boundaries"), [(1, 29), (100_000, 5)])
def test_tiles_and_what_runs_between_them_change_no_bit(max_tile_pairs, num_boundaries):
    """Many tiles with another sequence in between equal one tile."""
    keys, values, slots = paged(900, 3, 64)
    query = torch.randn(900, 9, 64).bfloat16()
    other = torch.randn(100, 9, 64).bfloat16()
    whole, whole_other = attend(query, keys, values, slots), attend(other, keys, values, slots)
    others = []
    tiled = attend(
        query,
        keys,
        values,
        slots,
        lambda: others.append(attend(other, keys, values, slots)),
        max_tile_pairs=max_tile_pairs,
    )
    assert torch.equal(tiled, whole)
    assert len(others) == num_boundaries
    assert all(torch.equal(result, whole_other) for result in others)


@needs_native
def test_queries_may_be_columns_of_a_wider_tensor():
    """Query, key and value projections come as one tensor; nothing is copied."""
    keys, values, slots = paged(50, 3, 64)
    qkv = torch.randn(50, 15 * 64).bfloat16()
    query = qkv[:, : 9 * 64].view(50, 9, 64)
    assert torch.equal(
        attend(query, keys, values, slots), attend(query.contiguous(), keys, values, slots)
    )


@needs_native
@pytest.mark.parametrize("rounds_first", [False, True])
@pytest.mark.parametrize(("num_tokens", "width"), [(1, 16), (3, 576), (130, 2048)])
def test_add_rms_norm_equals_torch_but_for_the_last_bit(num_tokens, width, rounds_first):
    """Sum in place, norm returned; at most one bfloat16 step off per rounding."""
    torch.manual_seed(5)
    x, residual = torch.randn(2, num_tokens, width).bfloat16()
    weight = torch.randn(width).bfloat16()
    total = x.float() + residual.float()
    normed = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-5)
    expected = normed.bfloat16() * weight if rounds_first else (normed * weight).bfloat16()
    updated = residual.clone()
    result = load_native().add_rms_norm(x, updated, weight, 1e-5, rounds_first=rounds_first)
    assert torch.equal(updated, total.bfloat16())
    torch.testing.assert_close(result, expected, atol=0.0, rtol=2**-6 if rounds_first else 2**-7)
    alone = load_native().add_rms_norm(x, None, weight, 1e-5, rounds_first=rounds_first)
    assert alone.shape == x.shape


@needs_native
def test_silu_and_mul_equals_torch():
    """Both halves, rounded as torch's two operators round; also far out on both sides."""
    x = torch.randn(33, 2 * 96).bfloat16() * 20
    expected = silu(x[:, :96]) * x[:, 96:]
    torch.testing.assert_close(load_native().silu_and_mul(x), expected, atol=1e-30, rtol=2**-7)


@needs_native
def test_rope_rotates_in_place_as_torch_does():
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
    load_native().rope_(positions, qkv[:, :192], qkv[:, 192:256], cos_sin)
    assert torch.equal(qkv, expected)


def test_without_a_compiler_everything_runs_as_plain_torch(monkeypatch, caplog, tmp_path):
    """The reason is said once, and attention still gives its result, in tiles."""
    monkeypatch.setenv("SGLANG_FLOWPREFILL_CACHE", str(tmp_path))
    monkeypatch.setattr(native_module, "_cpu_features", lambda: native_module._FEATURES)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    load_native.cache_clear()
    try:
        assert load_native() is None
        keys, values, slots = paged(40, 3, 64)
        query = torch.randn(40, 9, 64).bfloat16()
        result = attend(query, keys, values, slots)
        expected = reference(query, keys, values, slots)
        torch.testing.assert_close(result.float(), expected, atol=TOLERANCE, rtol=TOLERANCE)
        messages = [r.message for r in caplog.records if "slower" in r.message]
        assert messages == [messages[0]]
        assert "no C++ compiler" in messages[0]
    finally:
        load_native.cache_clear()


def test_a_processor_without_the_instructions_gets_plain_torch(monkeypatch, caplog):
    """The library is neither built nor loaded; what is missing is named."""
    monkeypatch.setattr(native_module, "_cpu_features", lambda: frozenset({"avx2"}))
    load_native.cache_clear()
    try:
        assert load_native() is None
        assert "lacks avx512_bf16" in caplog.text
    finally:
        load_native.cache_clear()


def test_a_compiler_that_fails_is_no_error(monkeypatch, tmp_path):
    """A broken compiler means plain torch code, not a server that does not start."""
    monkeypatch.setenv("SGLANG_FLOWPREFILL_CACHE", str(tmp_path))
    monkeypatch.setattr(native_module, "_cpu_features", lambda: native_module._FEATURES)
    monkeypatch.setenv("CXX", "/bin/false")
    load_native.cache_clear()
    try:
        assert native_module.load_native() is None
        assert not list((tmp_path / "kernels").glob("*.so"))
    finally:
        load_native.cache_clear()
