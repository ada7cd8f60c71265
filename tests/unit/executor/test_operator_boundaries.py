"""Operators of a model, and boundaries before them."""

import pytest
import torch
from tiny_model import OPERATOR_TYPES, WIDTH, Engine
from torch import nn

from sglang_flowprefill.executor import (
    family_of,
    find_operators,
    first_of_each_layer,
    halves_of_each_layer,
    install_boundaries,
    uncovered_modules,
)


class SpecialLinear(nn.Linear):
    """A subclass, as quantized layers are."""


def model():
    """Return three operators and an activation."""
    return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), SpecialLinear(4, 4))


def with_boundaries(network, reach, operator_types=OPERATOR_TYPES):
    """Put boundaries on a network; return the handles."""
    return install_boundaries(find_operators(network, operator_types), reach)


def test_every_operator_is_found_with_name_and_kind():
    """Subclasses count, modules of other classes do not."""
    found = [(operator.name, operator.kind) for operator in find_operators(model(), OPERATOR_TYPES)]
    assert found == [("0", "norm"), ("1", "linear"), ("3", "linear")]


def test_the_boundary_comes_before_its_operator():
    """At the boundary the operator has not run yet: nothing of it needs to be kept or undone."""
    order = []
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with_boundaries(network, order.append)
    for module in network:
        module.register_forward_hook(lambda *_: order.append("operator"))
    network(torch.zeros(1, 2))
    assert order == ["0", "operator", "1", "operator"]


def test_what_reach_returns_never_becomes_an_input():
    """A pre-hook that returned a value would replace the operator's inputs by it."""
    network, inputs = model(), torch.randn(3, 4)
    expected = network(inputs)
    with_boundaries(network, lambda _name: torch.full((3, 4), 9.0))
    assert torch.equal(network(inputs), expected)


def test_boundaries_can_be_removed():
    """Afterwards the model is as it was."""
    network, reached = model(), []
    for handle in with_boundaries(network, reached.append):
        handle.remove()
    network(torch.zeros(1, 4))
    assert not reached
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_shared_module_has_one_boundary_and_reaches_it_at_every_call():
    """Tied weights do not double the hooks."""
    shared, reached = nn.Linear(2, 2), []
    network = nn.Sequential(shared, shared)
    assert len(with_boundaries(network, reached.append)) == 1
    network(torch.zeros(1, 2))
    assert len(reached) == 2


def test_the_order_is_that_of_the_model():
    """Twelve operators of the tiny model, in the order in which its layers name them."""
    engine = Engine()
    names = [operator.name for operator in engine.operators]
    assert len(names) == engine.model.num_operators
    assert names[0].startswith("layers.0.")
    assert names[-1].startswith("layers.1.")
    assert engine.model(torch.zeros(2, WIDTH), 0.0).shape == (2, WIDTH)


@pytest.mark.parametrize(
    ("name", "layer", "family"),
    [
        ("model.layers.3.mlp.down_proj", "model.layers.3", "model.layers.*.mlp.down_proj"),
        ("model.layers.12.mlp.experts.7.w1", "model.layers.12", "model.layers.*.mlp.experts.*.w1"),
        ("model.norm", None, "model.norm"),
        ("model.rope2d.norm", None, "model.rope2d.norm"),
    ],
)
def test_names_tell_the_layer_and_what_is_the_same_in_all_layers(name, layer, family):
    """Only whole components of a name are layer numbers."""
    operator = find_operators(nn.Linear(1, 1), OPERATOR_TYPES)[0]
    assert type(operator)(name, "linear", operator.module).layer == layer
    assert family_of(name) == family


def decoder_layer(*, has_input_norm):
    """Return a layer that declares its norm last, as decoder layers do."""
    parts = {"self_attn": nn.Linear(2, 2), "mlp": nn.Linear(2, 2)}
    norm = {"input_layernorm": nn.LayerNorm(2)} if has_input_norm else {}
    return nn.ModuleDict({**parts, **norm})


@pytest.mark.parametrize(
    ("has_input_norm", "first"), [(True, "input_layernorm"), (False, "self_attn")]
)
def test_a_layer_begins_with_its_input_norm_or_else_with_its_attention(has_input_norm, first):
    """The order of declaration is not always the order of calls."""
    layers = nn.ModuleList(decoder_layer(has_input_norm=has_input_norm) for _ in range(2))
    network = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(2)})
    operators = first_of_each_layer(find_operators(network, OPERATOR_TYPES))
    assert [operator.name for operator in operators] == [f"layers.0.{first}", f"layers.1.{first}"]


def test_halves_of_a_layer_begin_after_attention_and_after_the_mlp():
    """Two boundaries a layer: its first operator, and the norm behind its attention."""
    layers = nn.ModuleList(decoder_layer(has_input_norm=True) for _ in range(2))
    for layer in layers:
        layer["post_attention_layernorm"] = nn.LayerNorm(2)
    network = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(2)})
    names = {o.name for o in halves_of_each_layer(find_operators(network, OPERATOR_TYPES))}
    assert names == {
        f"layers.{i}.{norm}"
        for i in range(2)
        for norm in ("input_layernorm", "post_attention_layernorm")
    }


def test_modules_that_no_operator_covers_are_listed_with_their_parameters():
    """What lies inside an operator is covered; what is only looked up does not count."""

    class Special(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5))

    layer = nn.ModuleDict({"linear": nn.Linear(2, 2), "mixer": Special(), "act": nn.ReLU()})
    network = nn.ModuleDict(
        {"layers": nn.ModuleList([layer, nn.ModuleDict({"mixer": Special()})])}
        | {"embedding": nn.Embedding(3, 2)}
    )
    operators = find_operators(network, OPERATOR_TYPES)
    assert uncovered_modules(network, operators, (nn.Embedding,)) == {"layers.*.mixer": 10}
    assert set(uncovered_modules(network, operators)) == {"layers.*.mixer", "embedding"}
