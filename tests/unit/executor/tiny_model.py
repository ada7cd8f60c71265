"""A transformer small enough for milliseconds, with a global the way an engine has them."""

import math

import torch
from torch import nn

from sglang_flowprefill.executor import Checkpoint, find_operators, install_boundaries
from sglang_flowprefill.testing import FakeEngineState

OPERATOR_TYPES = {nn.LayerNorm: "norm", nn.Linear: "linear"}
WIDTH = 16


class Layer(nn.Module):
    """Pre-norm attention and feed-forward: six operators."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, hidden):
        """Attend causally, then mix channels."""
        q, k, v = self.qkv(self.attention_norm(hidden)).chunk(3, dim=-1)
        scores = q @ k.T / math.sqrt(WIDTH)
        hidden_above = torch.ones_like(scores).triu(1).bool()
        hidden = hidden + self.output(scores.masked_fill(hidden_above, -math.inf).softmax(-1) @ v)
        return hidden + self.down(torch.relu(self.up(self.mlp_norm(hidden))))


class TinyModel(nn.Module):
    """Two layers, twelve operators. ``engine["position_shift"]`` must be its own on every read."""

    num_operators = 12

    def __init__(self, engine):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self._engine = engine

    def forward(self, inputs, shift):
        """Write the shift into the engine's globals, read it back in every layer."""
        self._engine["position_shift"] = shift
        hidden = inputs
        for layer in self.layers:
            hidden = layer(hidden) + self._engine["position_shift"]
        return hidden


class Engine:
    """The tiny model with boundaries on it, and what a scheduler needs to run it."""

    def __init__(self):
        torch.manual_seed(7)
        self.globals = {"owner": "scheduler"}
        self.switches = []
        self.wants_control = True
        self.checkpoint = Checkpoint(lambda: self.wants_control)
        self.model = TinyModel(self.globals).requires_grad_(requires_grad=False)
        self.operators = find_operators(self.model, OPERATOR_TYPES)
        install_boundaries(self.operators, self.checkpoint.reach)

    def state(self, name="cursor"):
        """Return the switch state of one more forward pass."""
        return FakeEngineState(self.globals, self.switches, name)
