"""The kernel bench: operations counted by hand, the roofline, and that every case runs."""

import json
from itertools import count

import pytest
import torch
from sglang_flowprefill.kernels.cpu.native import load_native

from bench.errors import UsageError
from bench.kernels.cases import kernel_cases, linear_cases
from bench.kernels.model_shape import ModelShape, model_shape
from bench.kernels.report import (
    KernelResult,
    draw_kernels,
    kernel_table,
    prefill_table,
    result_document,
)
from bench.kernels.roofline import Measurement, Roof, fastest
from bench.kernels.whole_prefill import WholePrefill

TINY = ModelShape(2, 64, 4, 2, 32, 96, 256)
ROOF = Roof(flops_per_s=1e11, bytes_per_s=1e10)


def test_operations_are_those_counted_by_hand():
    """Two tokens of attention see three pairs; products count two operations a weight."""
    assert TINY.attention_flops(2, 2) == 4 * 3 * 4 * 32
    assert TINY.attention_flops(1, 5) == 4 * 5 * 4 * 32
    products = 64 * 256 + 128 * 64 + 64 * 192 + 96 * 64
    assert TINY.prefill_flops(2) == 2 * (2 * products * 2 + 4 * 3 * 128) + 2 * 64 * 256


def test_sizes_come_from_the_models_configuration(tmp_path):
    """Head width and number of KV heads follow where the file leaves them out."""
    config = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    config |= {"intermediate_size": 96, "vocab_size": 256}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_shape(tmp_path) == ModelShape(2, 64, 4, 4, 16, 96, 256)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="no configuration of a decoder"):
        model_shape(tmp_path)


def test_the_slower_of_compute_and_memory_limits():
    """The least time is that of the peak which is reached first."""
    assert ROOF.seconds(1e11, 1e9) == 1.0
    assert ROOF.seconds(1e9, 1e10) == 1.0


def test_the_first_call_is_not_measured():
    """On a clock that ticks once per reading, each measured call takes one tick."""
    ticks, calls = count(), []
    times = fastest(lambda: calls.append(0), measured_s=8.0, clock=lambda: float(next(ticks)))
    assert times == (1.0, 1.0)
    assert len(calls) == 1 + 3


@pytest.mark.skipif(load_native() is None, reason="no compiled kernels here")
def test_every_case_runs_and_agrees_with_its_reference():
    """Kernel and torch code of each case take the same inputs; what they return is close."""
    names = set()
    for case in kernel_cases(load_native(), TINY):
        names.add(case.name)
        assert case.flops > 0 or case.family == "kv"  # a copy computes nothing
        assert case.num_bytes > 0
        if "8000" in case.name:
            continue  # seconds of torch code
        found, expected = case.run(), case.reference()
        if case.family in {"linear", "activation"}:
            torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6)
    assert len(names) == 16 + 5 + 4 + 8


@pytest.mark.skipif(load_native() is None, reason="no compiled kernels here")
def test_products_take_the_weights_of_every_layer_in_turn():
    """Both sides the same one, and after the last layer the first again."""
    case, *_ = linear_cases(TINY, 3)
    calls = [(case.run(), case.reference()) for _ in range(TINY.num_layers + 1)]
    for found, expected in calls:
        torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6)
    assert torch.equal(calls[0][0], calls[-1][0])
    assert not torch.equal(calls[0][0], calls[1][0])


def test_table_document_and_picture_hold_every_row(tmp_path):
    """Nothing measured is left out, and the picture is a picture."""
    rows = [
        Measurement("norm", "norm", 1e-5, 2e-5, 3e-5, 1e9, 2e9, 0.2, "memory"),
        Measurement("attention", "attention", 1e-3, 1e-3, None, 5e10, 1e8, 0.5, "compute"),
    ]
    whole = [WholePrefill(32, 0.05, 0.06, 0.4, {"linear": 0.02, "rest": 0.03})]
    result = KernelResult("a title", TINY, ROOF, rows, whole)
    assert kernel_table("a title", rows).row_count == 2
    assert prefill_table(whole).row_count == 1
    document = result_document(result, {})
    assert [row["name"] for row in document["kernels"]] == ["norm", "attention"]
    assert document["whole_prefills"][0]["family_s"]["rest"] == 0.03
    draw_kernels(result, tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
