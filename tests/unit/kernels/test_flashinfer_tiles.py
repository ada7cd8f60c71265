"""Tiles through FlashInfer's paged wrapper: equal to the whole, wherever a prefill is stopped."""

import math
from functools import partial

import pytest
import torch
from sglang_flowprefill.kernels.cpu.prefill_attention import NewTokens
from sglang_flowprefill.kernels.flashinfer import prefill_tiles
from sglang_flowprefill.kernels.flashinfer.prefill_tiles import AttentionShape, PrefillTiles

from tests.unit.kernels.flashinfer_double import TorchWrapper

HEADS, KV_HEADS, DIM, WINDOW = 6, 2, 16, 21
SLOTS, ROWS, TILE = 700, 8, 16
TABLE = torch.randperm(ROWS * 80, generator=torch.Generator().manual_seed(1)).int().view(ROWS, 80)

BATCHES = {
    "one prompt": [NewTokens(3, 70, 70)],
    "after a cached prefix": [NewTokens(1, 37, 71)],
    "several": [
        NewTokens(5, 40, 66),
        NewTokens(0, 9, 9),
        NewTokens(2, 1, 30),
        NewTokens(4, 33, 33),
    ],
}
OTHER = [NewTokens(6, 60, 61), NewTokens(7, 25, 40)]


@pytest.fixture(autouse=True)
def _short_tiles(monkeypatch):
    monkeypatch.setattr(prefill_tiles, "ROWS_MULTIPLE", TILE)


@pytest.fixture
def cache():
    """Keys and values of one layer."""
    return tuple(torch.randn(2, SLOTS, KV_HEADS, DIM, generator=torch.Generator().manual_seed(2)))


def query_of(sequences):
    """Return random rows for a batch."""
    num_rows = sum(sequence.num_queries for sequence in sequences)
    generator = torch.Generator().manual_seed(num_rows)
    return torch.randn(num_rows, HEADS, DIM, generator=generator)


def tiles_of(wrappers=None):
    """Return tiles over wrappers that compute in torch; those are added to the list given."""

    def make():
        wrapper = TorchWrapper(torch.empty(1), "NHD", backend="fa2")
        if wrappers is not None:
            wrappers.append(wrapper)
        return wrapper

    shape = AttentionShape(HEADS, KV_HEADS, DIM, torch.float32, torch.float32, (-1, WINDOW))
    return PrefillTiles(make, shape)


def attend(tiles, query, cache, window, reach=lambda: None):
    """Run one layer."""
    output = torch.full_like(query, math.nan)
    tiles.attend(query, cache, output, window=window, reach=reach, sm_scale=0.3)
    return output


def whole(sequences, query, cache, window):
    """Return the attention as one tile would compute it."""
    wrapper = TorchWrapper(torch.empty(1))
    rows, keys, slots = [0], [0], []
    for sequence in sequences:
        rows.append(rows[-1] + sequence.num_queries)
        keys.append(keys[-1] + sequence.num_keys)
        slots.append(TABLE[sequence.table_row, : sequence.num_keys])
    pointers = (torch.tensor(rows, dtype=torch.int32), torch.tensor(keys, dtype=torch.int32))
    last = torch.ones(len(sequences), dtype=torch.int32)
    settings = {"causal": True, "window_left": window}
    wrapper.plan(*pointers, torch.cat(slots), last, HEADS, KV_HEADS, DIM, 1, **settings)
    return wrapper.forward(query, cache, sm_scale=0.3, **settings)


@pytest.mark.parametrize("window", [-1, WINDOW])
@pytest.mark.parametrize("name", BATCHES)
def test_tiles_compute_what_one_call_computes(cache, name, window):
    """Grouped heads, cached prefixes, several sequences in a tile, windows: equal rows."""
    sequences = BATCHES[name]
    query, tiles = query_of(sequences), tiles_of()
    tiles.plan(sequences, TABLE, 600.0)
    assert tiles.num_tiles > 1
    expected = whole(sequences, query, cache, window)
    torch.testing.assert_close(attend(tiles, query, cache, window), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [-1, WINDOW])
@pytest.mark.parametrize("name", BATCHES)
def test_a_stop_at_any_tile_changes_no_bit(cache, name, window):
    """Another batch plans and runs in between, on the same wrappers; planning again is enough."""
    sequences = BATCHES[name]
    query, tiles = query_of(sequences), tiles_of()
    tiles.plan(sequences, TABLE, 600.0)
    expected = attend(tiles, query, cache, window)
    for stop in range(1, tiles.num_tiles):
        passed = iter(range(1, 100))

        def reach(passed=passed, stop=stop):
            if next(passed) == stop:
                tiles.plan(OTHER, TABLE, 500.0)
                attend(tiles, query_of(OTHER), cache, window)
                tiles.plan(sequences, TABLE, 600.0)

        tiles.plan(sequences, TABLE, 600.0)
        assert torch.equal(attend(tiles, query, cache, window, reach), expected)


def test_without_planning_again_it_would_not_be_right(cache):
    """The test above can fail: a plan of another batch gives other rows, or none."""
    sequences = BATCHES["one prompt"]
    query, tiles = query_of(sequences), tiles_of()
    tiles.plan(sequences, TABLE, 600.0)
    with pytest.raises((AssertionError, IndexError)):
        attend(tiles, query, cache, -1, partial(tiles.plan, OTHER, TABLE, 500.0))


def test_one_plan_serves_all_layers_and_wrappers_are_kept(cache):
    """A tile is planned once for each window; the next forward pass makes no wrapper anew."""
    wrappers = []
    tiles = tiles_of(wrappers)
    sequences = BATCHES["one prompt"]
    tiles.plan(sequences, TABLE, 600.0)
    num_wrappers = len(wrappers)
    assert num_wrappers == 2 * tiles.num_tiles
    for _layer in range(3):
        attend(tiles, query_of(sequences), cache, -1)
    assert {wrapper.num_plans for wrapper in wrappers} == {1}
    tiles.plan(sequences, TABLE, 600.0)
    assert len(wrappers) == num_wrappers


def test_what_one_tile_holds_is_not_planned():
    """Short forward passes, and all of them without a limit, are left to SGLang's own plan."""
    wrappers = []
    tiles = tiles_of(wrappers)
    for limit in (1e6, math.inf):
        tiles.plan(BATCHES["several"], TABLE, limit)
        assert tiles.num_tiles == 0
    assert not wrappers


def test_a_boundary_lies_between_two_tiles_only(cache):
    """None before the first: the operator's own boundary is there."""
    sequences = BATCHES["one prompt"]
    tiles, reached = tiles_of(), []
    tiles.plan(sequences, TABLE, 600.0)
    attend(tiles, query_of(sequences), cache, -1, lambda: reached.append(1))
    assert len(reached) == tiles.num_tiles - 1
