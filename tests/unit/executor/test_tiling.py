"""Modules that run in row tiles."""

import math
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import silu
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_flowprefill.executor import RowTiling
from sglang_flowprefill.executor.tiling import ROWS_MULTIPLE, rows_within, tile_rows

WIDTH = 32
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class FusedNorm(nn.Module):
    """Adds the residual in place and returns it too, as fused kernels do."""

    def forward(self, x, residual):
        """Return ``[num_rows, width]`` twice."""
        residual += x
        return torch.nn.functional.rms_norm(residual, (residual.shape[1],)), residual


class LinearWithBias(nn.Linear):
    """Returns its bias beside the product, as parallel linear layers do."""

    def forward(self, x, scale=1.0):
        """Return ``[num_rows, width]`` and ``[width]``."""
        return scale * (x @ self.weight.T), self.bias


class Mlp(nn.Module):
    """Gate, up and down, eight times as wide inside as outside."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.gate_up = nn.Linear(WIDTH, 16 * WIDTH, bias=False, dtype=dtype)
        self.down = nn.Linear(8 * WIDTH, WIDTH, bias=False, dtype=dtype)

    def forward(self, x):
        """Return ``[num_rows, WIDTH]``."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(silu(gate) * up)


def tiled(module, max_rows=ROWS_MULTIPLE, reach=lambda _name: None, *, has_boundaries=False):
    """Let a module run in tiles of so many rows."""
    tiling = RowTiling(reach, is_active=lambda: True)
    tiling.add(module, "the module", "family", has_boundaries=has_boundaries)
    tiling.limit({"family": 1.0}, float(max_rows))
    return module


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("num_rows", [1, 64, 65, 128, 1000])
def test_tiles_equal_the_whole_within_rounding(num_rows, dtype):
    """Odd lengths, one tile and many; the bound is that of one dot product in this dtype."""
    mlp, x = Mlp(dtype), torch.randn(num_rows, WIDTH, dtype=dtype)
    whole = mlp(x)
    bound = ROUNDING[dtype]
    torch.testing.assert_close(tiled(mlp)(x), whole, atol=bound, rtol=bound)


def test_a_norm_in_tiles_is_bitwise_equal_and_works_in_place():
    """Each row by itself; the caller's residual is the one that is updated and returned."""
    x, residual = torch.randn(300, WIDTH), torch.randn(300, WIDTH)
    expected, expected_sum = FusedNorm()(x, residual.clone())
    output, returned = tiled(FusedNorm())(x, residual)
    assert torch.equal(output, expected)
    assert returned is residual
    assert torch.equal(residual, expected_sum)


def test_what_is_not_rows_passes_through():
    """A bias is returned as it is, also where its length happens to be that of a tile."""
    linear = LinearWithBias(WIDTH, ROWS_MULTIPLE)
    x = torch.randn(130, WIDTH)
    expected, _ = linear(x, scale=2.0)
    output, bias = tiled(linear)(x, scale=2.0)
    torch.testing.assert_close(output, expected)
    assert bias is linear.bias


def test_a_boundary_lies_between_every_two_tiles():
    """None before the first: the operator's own boundary is there."""
    reached = []
    tiled(nn.Linear(WIDTH, WIDTH), reach=reached.append)(torch.randn(200, WIDTH))
    assert reached == ["the module"] * 3


def test_a_block_with_boundaries_inside_needs_none_between_its_tiles():
    """Its first operator has one."""
    reached = []
    tiled(Mlp(), reach=reached.append, has_boundaries=True)(torch.randn(200, WIDTH))
    assert not reached


def test_what_runs_between_tiles_does_not_matter():
    """Another call of the same module inside every boundary changes neither result."""
    linear, x, other = nn.Linear(WIDTH, WIDTH), torch.randn(500, WIDTH), torch.randn(70, WIDTH)
    others = []
    is_nested = False

    def reach(_name):
        nonlocal is_nested
        if not is_nested:
            is_nested = True
            others.append(linear(other))
            is_nested = False

    expected, expected_other = tiled(linear)(x), linear(other)
    tiled(linear, reach=reach)
    assert torch.equal(linear(x), expected)
    assert len(others) == 7
    assert all(torch.equal(result, expected_other) for result in others)


@pytest.mark.parametrize(
    ("max_s", "is_active", "num_rows", "num_boundaries"),
    [
        (64.0, True, 64, 0),
        (64.0, False, 1000, 0),
        (math.inf, True, 1000, 0),
        (64.0, True, 65, 1),
    ],
)
def test_only_what_is_too_long_inside_a_prefill_is_cut(max_s, is_active, num_rows, num_boundaries):
    """Decode steps, warm-up outside a cursor and short prompts run as they are."""
    reached = []
    tiling = RowTiling(reached.append, is_active=lambda: is_active)
    linear = nn.Linear(WIDTH, WIDTH)
    tiling.add(linear, "linear", "family", has_boundaries=False)
    tiling.limit({"family": 1.0}, max_s)
    linear(torch.randn(num_rows, WIDTH))
    assert len(reached) == num_boundaries


def test_a_module_never_measured_stays_whole():
    """Nothing is known of its time."""
    reached = []
    tiling = RowTiling(reached.append, is_active=lambda: True)
    linear = nn.Linear(WIDTH, WIDTH)
    tiling.add(linear, "linear", "family", has_boundaries=False)
    tiling.limit({}, 1e-9)
    linear(torch.randn(1000, WIDTH))
    assert not reached


def test_measuring_takes_the_median_of_a_family_and_waits_for_the_device():
    """Two layers, one number; every call is timed between two synchronisations."""
    waits = []
    tiling = RowTiling(
        lambda _name: None, is_active=lambda: True, synchronize=lambda: waits.append(1)
    )
    layers = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
    for index, layer in enumerate(layers):
        tiling.add(layer, f"layers.{index}", "layers.*", has_boundaries=False)
    with tiling.measuring():
        for layer in layers:
            layer(torch.randn(100, WIDTH))
    layers[0](torch.randn(100, WIDTH))
    assert len(waits) == 4
    assert set(tiling.seconds_per_row) == {"layers.*"}
    assert tiling.seconds_per_row["layers.*"] > 0.0


def test_a_module_whose_output_is_computed_later_stays_whole():
    """Tiles of it could not be put together."""

    class Lazy(nn.Module):
        def forward(self, x):
            return lambda: x

    tiling = RowTiling(lambda _name: None, is_active=lambda: True)
    lazy = Lazy()
    tiling.add(lazy, "lazy", "family", has_boundaries=False)
    with tiling.measuring():
        lazy(torch.randn(100, WIDTH))
    assert not tiling.seconds_per_row


@pytest.mark.parametrize(
    ("max_s", "row_s", "num_rows"),
    [(0.010, 0.00001, 960), (0.010, 1.0, 64), (0.001, 0.00001, 64), (math.inf, 1.0, None)],
)
def test_tiles_take_at_most_the_limit_and_at_least_one_multiple(max_s, row_s, num_rows):
    """Smaller tiles would waste the matrix kernels."""
    assert rows_within(max_s, row_s) == num_rows


def test_it_tells_up_to_how_many_rows_every_module_stays_whole():
    """Without limits any number, with them the least, and none while calls are measured."""
    tiling = RowTiling(lambda _name: None, is_active=lambda: True)
    assert tiling.max_whole_rows == math.inf
    for family in ("norm", "mlp", "never measured"):
        tiling.add(nn.Linear(WIDTH, WIDTH), "the module", family, has_boundaries=False)
    tiling.limit({"norm": 1.0, "mlp": 2.0}, 256.0)
    assert tiling.max_whole_rows == 128
    with tiling.measuring():
        assert tiling.max_whole_rows == 0


@pytest.mark.parametrize("num_rows", [65, 128, 1000, 8000])
@pytest.mark.parametrize("max_rows", [64, 192, 576])
def test_tiles_are_few_and_even(num_rows, max_rows):
    """No more tiles than needed, and none much shorter than the others."""
    rows = tile_rows(num_rows, max_rows)
    assert rows <= max_rows
    assert rows % ROWS_MULTIPLE == 0
    assert math.ceil(num_rows / rows) == math.ceil(num_rows / max_rows)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self._seen = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operator and note storages that it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage):
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key, size):
        self._seen.discard(key)
        self.live -= size


def peak_bytes(module, x):
    """Return the most bytes that a call held beyond its inputs."""
    with LiveBytes() as memory:
        memory._seen.add(x.untyped_storage().data_ptr())
        module(x)
    return memory.peak


def test_a_tiled_mlp_needs_far_less_memory():
    """Its wide intermediate exists for one tile at a time."""
    x = torch.randn(4096, WIDTH)
    whole, in_tiles = peak_bytes(Mlp(), x), peak_bytes(tiled(Mlp()), x)
    output_bytes = x.nbytes
    assert whole > 16 * output_bytes
    assert in_tiles < 2 * output_bytes


def test_a_tiled_linear_layer_needs_no_more_than_one_tile_on_top():
    """The output once, and the piece that is written into it."""
    x = torch.randn(4096, WIDTH)
    whole, in_tiles = (
        peak_bytes(m, x) for m in (nn.Linear(WIDTH, WIDTH), tiled(nn.Linear(WIDTH, WIDTH)))
    )
    assert in_tiles <= whole + 2 * ROWS_MULTIPLE * WIDTH * x.element_size()


@pytest.mark.parametrize(("num_rows", "is_active"), [(64, True), (200, False), (200, True)])
def test_a_stoppable_form_takes_the_place_of_the_tiles(num_rows, is_active):
    """Only where tiles would have run: not for short calls, nor outside a cursor."""
    module = nn.Linear(WIDTH, WIDTH)
    plain = module.forward
    calls = []

    def stoppable(x):
        calls.append(x.shape[0])
        return plain(x)

    reached = []
    tiling = RowTiling(reached.append, is_active=lambda: is_active)
    tiling.add(module, "the module", "family", has_boundaries=False, stoppable=stoppable)
    tiling.limit({"family": 1.0}, float(ROWS_MULTIPLE))
    x = torch.randn(num_rows, WIDTH)
    assert torch.equal(module(x), plain(x))
    assert calls == ([200] if num_rows == 200 and is_active else [])
    assert reached == []
