"""Models that are not preemptible at operator level are refused, with the modules at fault."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.layernorm import LayerNorm
from torch import nn

from sglang_flowprefill.adapter.model.model_runner import PreemptibleModelRunner
from sglang_flowprefill.errors import UnsupportedSGLangError

WIDTH = 8


class Mixer(nn.Module):
    """Does its work outside any operator."""

    def __init__(self, num_parameters):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_parameters))


def runner_of(*, num_norms, num_mixer_parameters=0, granularity="operator"):
    """Put boundaries on a model of two layers."""
    layers = nn.ModuleList(
        nn.ModuleDict(
            {f"norm_{i}": LayerNorm(WIDTH) for i in range(num_norms)}
            | {"mixer": Mixer(num_mixer_parameters)}
        )
        for _ in range(2)
    )
    model_runner = SimpleNamespace(
        model=nn.ModuleDict({"layers": layers}),
        model_config=SimpleNamespace(num_hidden_layers=2, hidden_size=WIDTH),
        attn_backend=TorchNativeAttnBackend.__new__(TorchNativeAttnBackend),
        device="cpu",
        dtype=torch.float32,
    )
    return PreemptibleModelRunner(model_runner, lambda: False, granularity)


def test_five_boundaries_per_layer_are_enough():
    """One per operator."""
    assert runner_of(num_norms=5).num_boundaries == 10


@pytest.mark.parametrize(
    ("granularity", "num_boundaries"), [("layer", 2), ("chunk", 0), ("off", 0)]
)
def test_coarser_granularities_have_fewer_boundaries(granularity, num_boundaries):
    """One per layer, or none inside a forward pass."""
    assert runner_of(num_norms=5, granularity=granularity).num_boundaries == num_boundaries


def test_half_layers_need_a_norm_behind_attention():
    """Where there is none, the second half would begin nowhere."""
    with pytest.raises(UnsupportedSGLangError, match="2 for each of 2 layers"):
        runner_of(num_norms=5, granularity="half-layer")


def test_too_few_boundaries_are_refused_naming_what_has_none():
    """Layers that call their parts as functions leave hooks nothing to hold on to."""
    with pytest.raises(UnsupportedSGLangError) as refusal:
        runner_of(num_norms=1, num_mixer_parameters=3)
    assert "only 2 operator boundaries found in the model, 10 needed" in str(refusal.value)
    assert "Modules without a boundary: layers.*.mixer" in str(refusal.value)


def test_a_large_part_outside_operators_is_refused_however_many_boundaries_there_are():
    """One huge module without a boundary would block for as long as it runs."""
    with pytest.raises(UnsupportedSGLangError) as refusal:
        runner_of(num_norms=5, num_mixer_parameters=100)
    assert "200 of " in str(refusal.value)
    assert "layers.*.mixer" in str(refusal.value)


def test_fired_boundaries_count_not_installed_ones():
    """A model may have modules that its forward pass never calls."""
    runner = runner_of(num_norms=5)
    runner.require_boundaries(10, "fire in a forward pass")
    with pytest.raises(UnsupportedSGLangError, match="only 9 operator boundaries fire"):
        runner.require_boundaries(9, "fire in a forward pass")
