"""Tiled prefill attention against one untiled call of torch."""

import math

import pytest
import torch
from sglang_flowprefill.kernels.cpu.tiled_attention import QUERY_TILE, tiled_causal_attention
from torch.nn.functional import scaled_dot_product_attention

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 16
SCALE = HEAD_DIM**-0.5
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


PAIRS = {"one tile": 1 << 40, "heads together": QUERY_TILE * 2200, "heads split": 0}


@pytest.fixture(params=["one tile", "heads together", "heads split"])
def max_tile_pairs(request):
    """Run short prompts as one tile, then in tiles of all heads, then one group per KV head."""
    return PAIRS[request.param]


def random_qkv(num_tokens, dtype, *, num_kv_heads=NUM_KV_HEADS, value_dim=HEAD_DIM):
    """Return query, key and value of one sequence, laid out as the adapter hands them over."""
    generator = torch.Generator().manual_seed(num_tokens)

    def random(heads, width):
        packed = torch.randn(num_tokens, heads, width, generator=generator)
        return packed.to(dtype).movedim(0, 1)

    return (
        random(NUM_HEADS, HEAD_DIM),
        random(num_kv_heads, HEAD_DIM),
        random(num_kv_heads, value_dim),
    )


DEFAULT_PAIRS = 1 << 21


def tiled(query, key, value, max_tile_pairs=DEFAULT_PAIRS, reach=lambda: None, **kwargs):
    """Return ``[num_queries, num_heads, value_dim]``; the buffer starts as NaN."""
    shape = (query.shape[1], query.shape[0], value.shape[2])
    output = torch.full(shape, math.nan, dtype=query.dtype)
    tiled_causal_attention(
        query,
        key,
        value,
        output,
        scale=SCALE,
        max_tile_pairs=max_tile_pairs,
        reach=reach,
        **kwargs,
    )
    return output


def untiled(query, key, value, mask=None):
    """Return the same from one call."""
    result = scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=SCALE,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return result[0].movedim(0, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 7, 511, 512, 540, 1024, 1500, 2100])
def test_whole_prompt_is_bitwise_equal_to_one_call(max_tile_pairs, num_tokens, dtype):
    """Tiling changes when the work is done, not one bit of its result; no output is read."""
    qkv = random_qkv(num_tokens, dtype)
    assert torch.equal(tiled(*qkv, max_tile_pairs), untiled(*qkv))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [513, 515, 1059, 2243])
def test_only_the_last_three_rows_may_differ_and_only_by_rounding(
    max_tile_pairs, num_tokens, dtype
):
    """A last block of one to three rows may be multiplied in another order."""
    query, key, value = random_qkv(num_tokens, dtype)
    result, expected = tiled(query, key, value, max_tile_pairs), untiled(query, key, value)
    assert torch.equal(result[:-3], expected[:-3])
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(result[-3:], expected[-3:], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("num_kv_heads", [1, NUM_HEADS])
def test_any_grouping_of_heads_is_bitwise_equal(max_tile_pairs, num_kv_heads):
    """Multi-query and multi-head attention as well as grouped."""
    qkv = random_qkv(700, torch.float32, num_kv_heads=num_kv_heads)
    assert torch.equal(tiled(*qkv, max_tile_pairs), untiled(*qkv))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_cached", "num_new"), [(1, 3), (100, 600), (512, 512), (1000, 1), (777, 1030)]
)
def test_chunk_after_a_prefix_equals_the_rows_of_the_whole(
    max_tile_pairs, num_cached, num_new, dtype
):
    """Up to rounding: the rows of a chunk sit elsewhere in the kernel's blocks."""
    query, key, value = random_qkv(num_cached + num_new, dtype)
    chunk = tiled(query[:, num_cached:], key, value, max_tile_pairs)
    tolerance = TOLERANCE[dtype]
    expected = untiled(query, key, value)[num_cached:]
    torch.testing.assert_close(chunk, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("window_size", [0, 5, 600])
@pytest.mark.parametrize(("num_cached", "num_new"), [(0, 40), (0, 1100), (300, 900)])
def test_sliding_window_sees_that_many_positions_back(
    max_tile_pairs, num_cached, num_new, window_size
):
    """A query attends to itself and to ``window_size`` positions before it."""
    num_tokens = num_cached + num_new
    query, key, value = random_qkv(num_tokens, torch.float32)
    distance = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)
    is_seen = (distance >= 0) & (distance <= window_size)
    expected = untiled(query, key, value, mask=is_seen)[num_cached:]
    result = tiled(
        query[:, num_cached:], key, value, max_tile_pairs, sliding_window_size=window_size
    )
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)


def test_values_may_have_another_width():
    """``value_dim`` need not be ``head_dim``."""
    qkv = random_qkv(600, torch.float32, value_dim=8)
    torch.testing.assert_close(tiled(*qkv), untiled(*qkv), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "num_boundaries"), [(1, 0), (512, 0), (1448, 0), (1449, 2), (2100, 4)]
)
def test_a_boundary_lies_between_every_two_tiles(num_tokens, num_boundaries):
    """None before the first or after the last: the module hooks are there."""
    reached = []
    tiled(*random_qkv(num_tokens, torch.float32), reach=lambda: reached.append(1))
    assert len(reached) == num_boundaries


def test_large_tiles_are_split_by_kv_head():
    """Over long context every KV head group is a tile of its own."""
    reached, qkv = [], random_qkv(2 * QUERY_TILE, torch.float32)
    tiled(*qkv, QUERY_TILE * QUERY_TILE, reach=lambda: reached.append(1))
    assert len(reached) == NUM_KV_HEADS  # one whole tile, then one per KV head


@pytest.mark.parametrize("max_tile_pairs", ["heads together", "heads split"], indirect=True)
@pytest.mark.parametrize("window_size", [None, 64])
def test_what_runs_at_a_boundary_does_not_matter(max_tile_pairs, window_size):
    """Another prefill inside every boundary leaves both results unchanged."""
    qkv, other = random_qkv(1700, torch.float32), random_qkv(600, torch.float32)
    kwargs = {"sliding_window_size": window_size, "max_tile_pairs": max_tile_pairs}
    expected, expected_other = tiled(*qkv, **kwargs), tiled(*other, **kwargs)
    others = []
    interleaved = tiled(*qkv, reach=lambda: others.append(tiled(*other, **kwargs)), **kwargs)
    assert torch.equal(interleaved, expected)
    assert others
    assert all(torch.equal(result, expected_other) for result in others)


def test_rows_of_other_sequences_are_left_alone():
    """The output may be a window of a larger buffer, as in a batch of several prompts."""
    query, key, value = random_qkv(600, torch.float32)
    buffer = torch.full((700, NUM_HEADS, HEAD_DIM), 5.0)
    tiled_causal_attention(
        query,
        key,
        value,
        buffer[50:650],
        scale=SCALE,
        max_tile_pairs=DEFAULT_PAIRS,
        reach=lambda: None,
    )
    assert torch.equal(buffer[50:650], untiled(query, key, value))
    assert (buffer[:50] == 5.0).all()
    assert (buffer[650:] == 5.0).all()
