"""Boundaries on the operators of a model."""

import torch
from tiny_model import OPERATOR_TYPES, WIDTH, Engine
from torch import nn

from sglang_flowprefill.executor import install_boundaries, remove_boundaries


class SpecialLinear(nn.Linear):
    """A subclass, as quantized layers are."""


def model():
    """Return three operators and an activation."""
    return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), SpecialLinear(4, 4))


def test_every_operator_gets_one_boundary_with_name_and_kind():
    """Subclasses count, modules of other classes do not."""
    boundaries = install_boundaries(model(), OPERATOR_TYPES, lambda: None)
    assert [(b.name, b.kind) for b in boundaries] == [
        ("0", "norm"),
        ("1", "linear"),
        ("3", "linear"),
    ]


def test_the_boundary_comes_before_its_operator():
    """At the boundary the operator has not run yet: nothing of it needs to be kept or undone."""
    order = []
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    install_boundaries(network, {nn.Linear: "linear"}, lambda: order.append("boundary"))
    for module in network:
        module.register_forward_hook(lambda *_: order.append("operator"))
    network(torch.zeros(1, 2))
    assert order == ["boundary", "operator"] * 2


def test_what_reach_returns_never_becomes_an_input():
    """A pre-hook that returned a value would replace the operator's inputs by it."""
    network, inputs = model(), torch.randn(3, 4)
    expected = network(inputs)
    install_boundaries(network, OPERATOR_TYPES, lambda: torch.full((3, 4), 9.0))
    assert torch.equal(network(inputs), expected)


def test_boundaries_can_be_removed():
    """Afterwards the model is as it was."""
    network, reached = model(), []
    remove_boundaries(install_boundaries(network, OPERATOR_TYPES, lambda: reached.append(1)))
    network(torch.zeros(1, 4))
    assert not reached
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_shared_module_has_one_boundary_and_reaches_it_at_every_call():
    """Tied weights do not double the hooks."""
    shared, reached = nn.Linear(2, 2), []
    network = nn.Sequential(shared, shared)
    assert len(install_boundaries(network, {nn.Linear: "linear"}, lambda: reached.append(1))) == 1
    network(torch.zeros(1, 2))
    assert len(reached) == 2


def test_the_order_is_that_of_the_model():
    """Twelve operators of the tiny model, in the order in which its layers name them."""
    engine = Engine()
    names = [boundary.name for boundary in engine.boundaries]
    assert len(names) == engine.model.num_operators
    assert names[0].startswith("layers.0.")
    assert names[-1].startswith("layers.1.")
    assert engine.model(torch.zeros(2, WIDTH), 0.0).shape == (2, WIDTH)
