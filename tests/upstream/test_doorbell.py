"""SGLang's linear layers as products that can be stopped, with a double that computes in torch."""

from itertools import count

import pytest
import torch
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

from sglang_flowprefill.adapter.model.doorbell import (
    doorbell_products,
    is_all_linear,
    require_plain_weights,
    stoppable_forward,
)
from sglang_flowprefill.adapter.model.model_runner import _add_tiled_modules
from sglang_flowprefill.errors import ConfigError
from sglang_flowprefill.executor import Checkpoint, Cursor, Operator, RowTiling, RunAhead
from sglang_flowprefill.testing import FakeEngineState
from tests.unit.executor.asynchronous_device import AsynchronousDevice

ROWS, WIDTH, OUT, TILE = 70, 16, 24, 10


class Product:
    """A product whose launch computes one tile of rows if the bell has rung, else all the rest."""

    def __init__(self, x, weight, device):
        self.output = x.new_full((x.shape[0], weight.shape[0]), float("nan"))
        self._x, self._weight, self._device = x, weight, device
        self._num_done, self._is_rung = 0, False

    @property
    def is_complete(self):
        """Tell whether all rows are there."""
        return self._num_done == len(self._x)

    def launch(self):
        """Queue what is left."""
        self._device.launch(self._compute)

    def ring(self):
        """Stop after a tile."""
        self._is_rung = True

    def clear(self):
        """Compute all that is left the next time."""
        self._is_rung = False

    def _compute(self):
        start = self._num_done
        stop = min(start + TILE, len(self._x)) if self._is_rung else len(self._x)
        self.output[start:stop] = self._x[start:stop] @ self._weight.T
        self._num_done = stop


@pytest.fixture
def device():
    """Return a device that stands still until the host waits for it."""
    with AsynchronousDevice() as device:
        yield device


def layer_of(**kwargs):
    """Return one of SGLang's linear layers with random weights."""
    layer = ReplicatedLinear(WIDTH, OUT, params_dtype=torch.float32, **kwargs)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def operator_of(layer):
    """Return it as an operator."""
    return Operator("model.layers.0.proj", "linear", layer)


def cursor_of(run, checkpoint):
    """Return a cursor over a function."""
    return Cursor(run, checkpoint, FakeEngineState({}, []))


@torch.no_grad()
@pytest.mark.parametrize(
    "kwargs", [{"bias": False}, {"bias": True}, {"bias": True, "skip_bias_add": True}]
)
@pytest.mark.parametrize("stop", [0, 1, 2, 5, 6, None])
def test_a_layer_stopped_anywhere_gives_what_it_gives_whole(device, kwargs, stop):
    """Output and bias as SGLang returns them; another forward pass runs at each stop."""
    layer = layer_of(**kwargs)
    x, other = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    expected, expected_other = layer(x), layer(other)
    asked = count()
    wants = (lambda: True) if stop is None else (lambda: next(asked) == stop)
    checkpoint = Checkpoint(wants, RunAhead(device, 2))
    forward = stoppable_forward(operator_of(layer), checkpoint, lambda *o: Product(*o, device))
    cursors = [cursor_of(lambda x=x: forward(x), checkpoint) for x in (x, other)]
    while any(cursor.is_alive for cursor in cursors):
        for cursor in cursors:
            if cursor.is_alive:
                cursor.resume()
    for cursor, (output, bias) in zip(cursors, (expected, expected_other), strict=True):
        found, found_bias = cursor.result
        torch.testing.assert_close(found, output)
        assert found_bias is bias
    if stop is None:
        assert cursors[0].num_suspensions > 1


@torch.no_grad()
def test_only_calls_that_would_run_in_tiles_are_stoppable(device):
    """Short ones, and decode outside of a cursor, multiply by SGLang's own product."""
    layer, made = layer_of(bias=False), []
    model = torch.nn.ModuleDict({"proj": layer})
    checkpoint = Checkpoint(lambda: False, RunAhead(device, 2))
    tiling = RowTiling(checkpoint.reach, lambda: checkpoint.cursor is not None)

    def make(x, weight):
        made.append(len(x))
        return Product(x, weight, device)

    _add_tiled_modules(tiling, model, [operator_of(layer)], checkpoint, make)
    tiling.limit({"model.layers.*.proj": 1.0}, 64.0)
    layer(torch.randn(ROWS, WIDTH))
    cursor_of(lambda: layer(torch.randn(64, WIDTH)), checkpoint).resume()
    assert made == []
    cursor_of(lambda: layer(torch.randn(ROWS, WIDTH)), checkpoint).resume()
    assert made == [ROWS]


@torch.no_grad()
def test_an_output_that_the_caller_owns_is_left_to_sglang():
    """A tensor among the other arguments."""
    layer = layer_of(bias=False)
    checkpoint = Checkpoint(lambda: False)
    given = []
    layer.forward = lambda *args, **kwargs: given.append((args, kwargs))
    forward = stoppable_forward(operator_of(layer), checkpoint, None)
    forward(torch.randn(3, WIDTH), output_tensor=torch.empty(3, OUT))
    assert given


def test_layers_that_do_more_than_multiply_keep_their_tiles():
    """A subclass with a forward of its own."""

    class Doubled(ReplicatedLinear):
        def forward(self, x):
            return 2 * super().forward(x)[0], None

    operator = operator_of(Doubled(WIDTH, OUT, params_dtype=torch.float32))
    assert stoppable_forward(operator, Checkpoint(lambda: False), None) is None


def test_quantised_weights_are_refused_by_name():
    """The layer and its method are named."""

    class Fp8(UnquantizedLinearMethod):
        pass

    layer = layer_of()
    require_plain_weights([operator_of(layer)])
    layer.quant_method = Fp8()
    with pytest.raises(ConfigError, match=r"--flowprefill-doorbell.*layers\.0\.proj.*Fp8"):
        require_plain_weights([operator_of(layer)])


@pytest.mark.parametrize(
    ("device_name", "num_ranks", "message"),
    [("cpu", 1, "needs an NVIDIA GPU.*cpu"), ("cuda", 2, "2 ranks.*--tp-size 1")],
)
def test_where_it_cannot_work_the_flag_is_refused(device_name, num_ranks, message):
    """Before a model is changed, with what to do."""
    with pytest.raises(ConfigError, match=message):
        doorbell_products(device_name, num_ranks)


def test_a_block_needs_no_tiles_if_its_linear_layers_hold_all_weights():
    """A block of experts keeps its tiles."""
    assert is_all_linear(torch.nn.ModuleList([layer_of(), layer_of(), torch.nn.SiLU()]))
    assert not is_all_linear(torch.nn.ModuleList([layer_of(), torch.nn.Linear(3, 3)]))
