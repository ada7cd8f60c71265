"""Compiled attention, prefill and decode, against torch in float32, on odd sizes; and its tiles."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang_flowprefill.kernels.cpu import prefill_attention as prefill_module
from sglang_flowprefill.kernels.cpu.native import TARGETS, PagedKv, can_attend, load_native
from sglang_flowprefill.kernels.cpu.prefill_attention import (
    NewTokens,
    plan_prefill,
    prefill_attention,
)
from torch.nn.functional import scaled_dot_product_attention

NUM_SLOTS = 4000
SCALE = 0.125
# Of values around 1: bfloat16 has 8 bits, half a step is 2**-9, and probabilities and results are
# each rounded once.
TOLERANCE = {torch.bfloat16: 2**-7, torch.float32: 2**-17}
DTYPES = list(TOLERANCE)
quietly = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=[target.name for target in TARGETS])
def native(request, monkeypatch):
    """The kernels of each target, in use everywhere. Skipped where they cannot be had."""
    kernels = load_native(request.param)
    if kernels is None:
        pytest.skip(f"no compiler, or this processor is not one for {request.param}")
    monkeypatch.setattr(prefill_module, "load_native", lambda: kernels)
    return kernels


class Batch:
    """Sequences scattered over a paged cache, and random queries for their last positions.

    Args:
        lengths: Cached and new positions of each sequence.
    """

    def __init__(self, lengths, heads=(9, 3), dim=64, dtype=torch.bfloat16):
        generator = torch.Generator().manual_seed(hash(tuple(lengths)) % 2**31)
        num_heads, num_kv_heads = heads
        cache = torch.randn(2, NUM_SLOTS, num_kv_heads, dim, generator=generator)
        keys, values = cache.to(dtype)
        num_rows = len(lengths)
        slots = torch.randperm(NUM_SLOTS, generator=generator).int()
        table = torch.zeros(num_rows + 1, max(map(sum, lengths)) + 3, dtype=torch.int32)
        self.sequences, start = [], 0
        for row, (num_cached, num_new) in enumerate(lengths, start=1):  # row 0 is nobody's
            num_keys = num_cached + num_new
            table[row, :num_keys] = slots[start : start + num_keys]
            self.sequences.append(NewTokens(row, num_new, num_keys))
            start += num_keys
        self.cache = PagedKv(keys, values, table)
        num_queries = sum(num_new for _, num_new in lengths)
        self.query = torch.randn(num_queries, num_heads, dim, generator=generator).to(dtype)

    def attend(self, reach=lambda: None, window_size=None, max_tile_pairs=math.inf):
        """Run ``prefill_attention`` into a buffer of NaNs."""
        output = torch.full(self.query.shape, math.nan, dtype=self.query.dtype)
        prefill_attention(
            self.query,
            self.cache,
            plan_prefill(self.sequences, max_tile_pairs),
            output,
            scale=SCALE,
            sliding_window_size=window_size,
            reach=reach,
        )
        return output

    def decode(self, native, window_size=None):
        """Run decode attention; every sequence has one new position."""
        output = torch.full(self.query.shape, math.nan, dtype=self.query.dtype)
        native.decode_attention(
            self.query,
            self.cache,
            output,
            table_rows=torch.tensor([s.table_row for s in self.sequences]),
            num_keys=torch.tensor([s.num_keys for s in self.sequences]),
            scale=SCALE,
            window_size=window_size,
        )
        return output

    def reference(self, window_size=None):
        """Return torch's attention in float32, sequence by sequence."""
        results, start = [], 0
        for sequence in self.sequences:
            stop = start + sequence.num_queries
            rows = torch.arange(sequence.num_keys - sequence.num_queries, sequence.num_keys)[
                :, None
            ]
            columns = torch.arange(sequence.num_keys)
            seen = columns <= rows
            if window_size is not None:
                seen &= columns >= rows - window_size
            slots = self.cache.table[sequence.table_row, : sequence.num_keys]
            both = (self.cache.keys, self.cache.values)
            k, v = (tensor[slots].float().movedim(0, 1)[None] for tensor in both)
            q = self.query[start:stop].float().movedim(0, 1)[None]
            result = scaled_dot_product_attention(
                q, k, v, attn_mask=seen, scale=SCALE, enable_gqa=True
            )
            results.append(result[0].movedim(0, 1))
            start = stop
        return torch.cat(results)


def require_close(found, expected, dtype):
    """Assert that a result is within the stated bound."""
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)


HEADS = st.sampled_from([(9, 3), (4, 4), (7, 1), (1, 1), (32, 2)])
DIMS = st.sampled_from([16, 32, 48, 64, 96, 128])
WINDOWS = st.sampled_from([None, 0, 1, 63, 64, 70, 1500])
LENGTHS = st.lists(
    st.tuples(st.sampled_from([0, 0, 1, 5, 63, 64, 127, 700]), st.integers(1, 150)),
    min_size=1,
    max_size=4,
)
DECODE_LENGTHS = st.lists(
    st.integers(0, 130) | st.sampled_from([1022, 1023, 1024, 1100]), min_size=1, max_size=3
)


@quietly
@given(LENGTHS, HEADS, DIMS, WINDOWS, st.sampled_from(DTYPES))
def test_prefill_is_as_close_as_the_dtype_allows(native, lengths, heads, dim, window_size, dtype):
    """Several sequences, odd lengths, cached prefixes, grouped heads, sliding windows."""
    batch = Batch(lengths, heads, dim, dtype)
    require_close(batch.attend(window_size=window_size), batch.reference(window_size), dtype)


@quietly
@given(DECODE_LENGTHS, HEADS, DIMS, WINDOWS, st.sampled_from(DTYPES))
def test_decode_is_as_close_as_the_dtype_allows(native, cached, heads, dim, window_size, dtype):
    """Contexts on both sides of the length from which keys are divided among tasks."""
    batch = Batch([(num_cached, 1) for num_cached in cached], heads, dim, dtype)
    require_close(batch.decode(native, window_size), batch.reference(window_size), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decoded_row_does_not_depend_on_its_batch(native, dtype):
    """Each of several sequences gives the same bits alone."""
    batch = Batch([(40, 1), (2500, 1), (0, 1), (1100, 1)], dtype=dtype)
    together = batch.decode(native)
    sequences, queries = batch.sequences, batch.query
    for index, sequence in enumerate(sequences):
        batch.sequences, batch.query = [sequence], queries[index : index + 1]
        assert torch.equal(batch.decode(native)[0], together[index])


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("window_size", [None, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("max_tile_pairs", "num_boundaries"), [(1, 29), (100_000, 5)])
def test_tiles_and_what_runs_between_them_change_no_bit(
    max_tile_pairs, num_boundaries, dtype, window_size
):
    """Many tiles with another batch in between equal one tile, and each sequence alone."""
    batch = Batch([(0, 900), (40, 30)], dtype=dtype)
    other = Batch([(0, 100)], dtype=dtype)
    whole, whole_other = batch.attend(window_size=window_size), other.attend()
    others = []
    tiled = batch.attend(
        lambda: others.append(other.attend()), window_size, max_tile_pairs=max_tile_pairs
    )
    assert torch.equal(tiled, whole)
    assert len(others) == num_boundaries
    assert all(torch.equal(result, whole_other) for result in others)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_of_a_batch_gives_the_bits_of_the_sequence_alone(dtype):
    """And a prompt in two chunks those of the whole prompt."""
    batch = Batch([(0, 70), (0, 333)], dtype=dtype)
    whole = batch.attend()
    query = batch.query
    batch.sequences, batch.query = [NewTokens(2, 333, 333)], query[70:]
    assert torch.equal(batch.attend(), whole[70:])
    batch.sequences, batch.query = [NewTokens(2, 133, 333)], query[270:]
    assert torch.equal(batch.attend(), whole[270:])


@pytest.mark.usefixtures("native")
def test_queries_may_be_columns_of_a_wider_tensor():
    """Query, key and value projections come as one tensor; nothing is copied."""
    batch = Batch([(0, 50)])
    expected = batch.attend()
    qkv = torch.zeros(50, 15 * 64).bfloat16()
    qkv[:, : 9 * 64] = batch.query.view(50, -1)
    batch.query = qkv[:, : 9 * 64].view(50, 9, 64)
    assert torch.equal(batch.attend(), expected)


@pytest.mark.usefixtures("native")
def test_a_score_that_is_no_number_is_not_hidden():
    """A broken query gives NaN, as in torch, and harms no other row."""
    batch = Batch([(0, 40)])
    expected = batch.attend()
    batch.query[7] = math.nan
    found = batch.attend()
    assert found[7].isnan().all()
    assert torch.equal(found[8:], expected[8:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_kernel_does_not_take_runs_as_torch_code(monkeypatch, dtype):
    """Without compiled kernels, several sequences and cached prefixes come out the same."""
    monkeypatch.setattr(prefill_module, "load_native", lambda: None)
    batch = Batch([(5, 40), (0, 3)], dtype=dtype)
    require_close(batch.attend(), batch.reference(), dtype)
    assert batch.attend(max_tile_pairs=1).isfinite().all()


def test_odd_layouts_are_refused():
    """Head dimensions, dtypes and strides that the kernel does not know."""
    batch = Batch([(0, 8)])
    query, keys, values, table = (
        batch.query,
        batch.cache.keys,
        batch.cache.values,
        batch.cache.table,
    )
    assert can_attend(query, batch.cache)
    assert not can_attend(query.half(), PagedKv(keys.half(), values.half(), table))
    assert not can_attend(query.float(), batch.cache)
    assert not can_attend(query[..., :40], PagedKv(keys[..., :40], values[..., :40], table))
    assert not can_attend(query, PagedKv(keys, values[..., :32], table))
    assert not can_attend(query, PagedKv(keys, values, table.long()))


SHORT, LONG = NewTokens(1, 40, 40), NewTokens(2, 600, 700)


@pytest.mark.parametrize(
    ("sequences", "max_tile_pairs", "expected"),
    [
        ([SHORT, LONG], math.inf, [[(1, 0, 40, 0), (2, 40, 600, 100)]]),
        ([SHORT, SHORT], 3500, [[(1, 0, 40, 0), (1, 40, 40, 0)]]),
        ([SHORT, SHORT], 3000, [[(1, 0, 40, 0)], [(1, 40, 40, 0)]]),
        ([LONG], 250_000, [[(2, 0, 448, 100)], [(2, 448, 152, 548)]]),
    ],
)
def test_a_tile_is_part_of_a_long_sequence_or_several_short_ones(
    sequences, max_tile_pairs, expected
):
    """Pieces follow one another, and a tile has no more pairs than asked for."""
    plan = plan_prefill(sequences, max_tile_pairs)
    assert [[tuple(piece) for piece in tile.tolist()] for tile in plan.tiles] == expected
