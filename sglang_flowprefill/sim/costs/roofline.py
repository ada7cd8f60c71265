"""Costs from a model's shape and a GPU's data sheet, for what nobody has measured."""

from dataclasses import dataclass

from sglang_flowprefill.sim.costs.pass_cost import PassSeconds
from sglang_flowprefill.sim.gpus import Gpu
from sglang_flowprefill.sim.shapes import ModelShape

_BYTES_PER_NUMBER = 2
_COMPUTE_SHARE = 0.62
"""Of the data sheet's rate. The shipped tables reach 41 to 72 % at 8,192 tokens."""
_MEMORY_SHARE = 0.8
_LAUNCH_S = 5e-6
_REDUCE_LATENCY_S = 10e-6
_OPERATORS_PER_LAYER = 10


@dataclass(frozen=True, slots=True)
class RooflineCost:
    """The slower of computing and reading weights, operator by operator.

    Attributes:
        shape: The model.
        gpu: The device.
        tp: GPUs that share a layer.
    """

    shape: ModelShape
    gpu: Gpu
    tp: int = 1

    @property
    def source(self) -> str:
        """Say that nothing was measured."""
        return (
            f"roofline: {self.gpu.name}'s data sheet at {_COMPUTE_SHARE:.0%} of its arithmetic and "
            f"{_MEMORY_SHARE:.0%} of its bandwidth (assumed)"
        )

    def prefill(self, num_tokens: int, num_pairs: float, num_requests: int) -> PassSeconds:  # noqa: ARG002
        """Return the estimated time."""
        attention_s = self.shape.flop_per_pair * num_pairs / self._flop_per_s
        layer_s = sum(
            max(
                2 * product.num_weights * num_tokens / self._flop_per_s,
                self._read_s(_num_read(product.num_weights, product.num_stored, num_tokens)),
            )
            for product in self.shape.products
        )
        layer_s += self._read_s(4 * self.shape.hidden * num_tokens) + self._reduce_s(num_tokens)
        layer_s += _OPERATORS_PER_LAYER * _LAUNCH_S
        logits_s = self._read_s(self.shape.hidden * self.shape.vocabulary)
        return PassSeconds(self.shape.num_layers * layer_s + attention_s + logits_s, attention_s)

    def decode_s(self, num_requests: int, num_context_tokens: int) -> float:
        """Return the estimated time of a step: reading weights and KV."""
        layer_s = sum(
            self._read_s(_num_read(product.num_weights, product.num_stored, num_requests))
            for product in self.shape.products
        )
        layer_s += self._reduce_s(num_requests) + _LAUNCH_S
        logits_s = self._read_s(self.shape.hidden * self.shape.vocabulary)
        kv_bytes = self.shape.kv_bytes_per_token * num_context_tokens
        kv_s = kv_bytes / (self.tp * _MEMORY_SHARE * self.gpu.memory_bytes_per_s)
        return self.shape.num_layers * layer_s + logits_s + kv_s

    @property
    def _flop_per_s(self) -> float:
        return self.tp * _COMPUTE_SHARE * self.gpu.flop_per_s

    def _read_s(self, num_numbers: float) -> float:
        rate = self.tp * _MEMORY_SHARE * self.gpu.memory_bytes_per_s
        return _BYTES_PER_NUMBER * num_numbers / rate

    def _reduce_s(self, num_tokens: int) -> float:
        """Two all-reduces of a layer."""
        if self.tp == 1:
            return 0.0
        num_bytes = 2 * _BYTES_PER_NUMBER * num_tokens * self.shape.hidden * (self.tp - 1) / self.tp
        return 2 * (num_bytes / self.gpu.link_bytes_per_s + _REDUCE_LATENCY_S)


def _num_read(num_weights: int, num_stored: int, num_tokens: int) -> int:
    """Return the weights that a pass reads: of experts no more than its tokens choose."""
    return min(num_weights * max(num_tokens, 1), num_stored)
