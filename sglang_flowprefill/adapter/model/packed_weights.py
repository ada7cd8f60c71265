"""Lets a loaded model's linear layers and its LM head multiply with weights packed once.

Each layer's ``quant_method`` is replaced, on the instance, by one that keeps a packed copy beside
the weight. Whatever reads or writes the weight finds it as ever; after anything that may have
changed it, ``forget`` must be called, and the next forward pass packs again. Left alone: quantised
weights, other dtypes, and all of them where the copies would not fit into memory.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.quantization.unquant import (
    UnquantizedEmbeddingMethod,
    UnquantizedLinearMethod,
)
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.cpu.memory import available_memory_bytes
from sglang_flowprefill.kernels.cpu.packed_linear import (
    PackedWeight,
    can_pack,
    pack_weight,
    packed_linear,
)

logger = logging.getLogger(__name__)

_MAX_MEMORY_FRACTION = 0.25  # of what is available once the model and its KV cache are there


class _Packed:
    """Mixed into SGLang's method of an unquantised layer."""

    _packed: PackedWeight | None = None

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if x.dtype != torch.bfloat16 or not x.numel():
            return super().apply(layer, x, bias)  # type: ignore[misc,no-any-return]
        return packed_linear(x, self._weight_of(layer), bias)

    def product_of(self, layer: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return ``apply`` of this layer for bfloat16 rows, of which there is one at least."""
        bias = layer.bias
        return lambda x: packed_linear(x, self._weight_of(layer), bias)

    def _weight_of(self, layer: torch.nn.Module) -> PackedWeight:
        if self._packed is None:
            self._packed = pack_weight(layer.weight)
        return self._packed

    def forget(self) -> None:
        self._packed = None


class _PackedLinear(_Packed, UnquantizedLinearMethod):
    pass


class _PackedLMHead(_Packed, UnquantizedEmbeddingMethod):
    """SGLang lets a method whose name it does not know as unquantised compute the logits."""

    def apply(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,  # noqa: ARG002 (SGLang's own plain product has none)
    ) -> torch.Tensor:
        return super().apply(layer, x.to(layer.weight.dtype))


def product_of(linear: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the product of an unquantised linear layer on one rank, without its module.

    Args:
        linear: Its weight may change afterwards. The product takes ``[num_rows, in_features]`` in
            the weight's dtype; at least one row.
    """
    method = linear.quant_method
    if isinstance(method, _Packed):
        return method.product_of(linear)
    return lambda x: method.apply(linear, x, linear.bias)


class PackedWeights:
    """The packed weights of one model.

    Args:
        model: The loaded model; its layers are changed in place.

    Attributes:
        num_layers: Layers that multiply with a packed weight.
        num_bytes: What the packed copies take.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        layers = [*_linear_layers(model), *_lm_heads(model)]
        self.num_bytes = sum(layer.weight.nbytes for layer, _ in layers)
        available = available_memory_bytes()
        if self.num_bytes > _MAX_MEMORY_FRACTION * available:
            logger.warning(
                "FlowPrefill: weights stay unpacked, which is slower: packed copies of %.1f GB "
                "would take over a quarter of the %.1f GB of memory available",
                self.num_bytes / 2**30,
                available / 2**30,
            )
            layers, self.num_bytes = [], 0
        for layer, method in layers:
            layer.quant_method = method
        self._methods = [method for _, method in layers]
        self.num_layers = len(layers)

    def forget(self) -> None:
        """Drop the packed copies: the weights may have changed. The next forward packs again."""
        for method in self._methods:
            method.forget()


def _linear_layers(model: torch.nn.Module) -> list[tuple[Any, _Packed]]:
    return [
        (module, _PackedLinear())
        for module in model.modules()
        if isinstance(module, LinearBase)
        and type(module.quant_method) is UnquantizedLinearMethod
        and can_pack(module.weight)
    ]


def _lm_heads(model: torch.nn.Module) -> list[tuple[Any, _Packed]]:
    """Find the LM head where the logits are a plain product in the weight's own dtype."""
    processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    head = getattr(model, "lm_head", None)
    is_plain = (
        releases.scheduling().ASKS_LM_HEAD_METHOD
        and isinstance(head, VocabParallelEmbedding)
        and type(head.quant_method) is UnquantizedEmbeddingMethod
        and can_pack(head.weight)
        and all(_multiplies_plainly(processor) for processor in processors)
    )
    return [(head, _PackedLMHead())] if is_plain else []


def _multiplies_plainly(processor: Any) -> bool:
    wants_float32 = processor.use_fp32_lm_head or processor.use_fp32_lm_head_output
    return not wants_float32 and processor.rl_on_policy_target is None
