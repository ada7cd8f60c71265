"""Finds the operators of a loaded model and puts a boundary before each.

An operator is a leaf module that launches the work: a norm, a linear layer, attention, an expert
block, the logits. Which classes those are is the caller's knowledge. Modules that keep scratch
between calls (rotary embedding, top-k routing, activations) are not operators: no boundary may
fall between their write and their read.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

_NORM_OF_MLP = "post_attention_layernorm"
_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a model.

    Attributes:
        name: Qualified name of the module, such as ``model.layers.3.mlp.down_proj``.
        kind: norm, linear, attention, experts or logits.
        module: The module.
    """

    name: str
    kind: str
    module: nn.Module

    @property
    def layer(self) -> str | None:
        """Name of the layer that it belongs to, such as ``model.layers.3``; None outside."""
        number = _LAYER_NUMBER.search(self.name)
        return None if number is None else self.name[: number.end()]


def find_operators(model: nn.Module, operator_types: Mapping[type, str]) -> list[Operator]:
    """List the operators of a model.

    Args:
        model: The loaded model.
        operator_types: Operator kind by module class; subclasses count.

    Returns:
        The operators in the order of ``model.named_modules()``.
    """
    found = []
    for name, module in model.named_modules():
        kind = _kind_of(module, operator_types)
        if kind is not None:
            found.append(Operator(name, kind, module))
    return found


def first_of_each_layer(operators: Iterable[Operator]) -> list[Operator]:
    """Keep the operator that runs first in each layer: boundaries at layer level.

    Decoder layers of SGLang declare their input norm last but call it first; of a layer without
    one (norm after the block), the first declared operator counts.
    """
    first: dict[str, Operator] = {}
    for operator in operators:
        layer = operator.layer
        if layer is None:
            continue
        if layer not in first or operator.name == f"{layer}.input_layernorm":
            first[layer] = operator
    return list(first.values())


def halves_of_each_layer(operators: Sequence[Operator]) -> list[Operator]:
    """Keep the operators after attention and after the MLP: where the paper's own code stops.

    The norm after attention is the first operator behind it, and the first operator of the next
    layer is the first one behind an MLP. A layer without such a norm keeps only its first.
    """
    after_attention = [
        operator
        for operator in operators
        if operator.layer is not None and operator.name == f"{operator.layer}.{_NORM_OF_MLP}"
    ]
    return [*first_of_each_layer(operators), *after_attention]


def uncovered_modules(
    model: nn.Module, operators: Sequence[Operator], ignored_types: tuple[type, ...] = ()
) -> dict[str, int]:
    """List modules whose parameters no operator covers: their work has no boundary before it.

    Args:
        model: The loaded model.
        operators: Its operators.
        ignored_types: Module classes whose parameters are only looked up, such as embeddings.

    Returns:
        Number of parameters by module name, layer numbers written as ``*``.
    """
    inside = {id(module) for operator in operators for module in operator.module.modules()}
    uncovered: dict[str, int] = {}
    for name, module in model.named_modules():
        if id(module) in inside or isinstance(module, ignored_types):
            continue
        num_parameters = sum(p.numel() for p in module.parameters(recurse=False))
        if num_parameters:
            family = family_of(name)
            uncovered[family] = uncovered.get(family, 0) + num_parameters
    return uncovered


def family_of(name: str) -> str:
    """Return the name with layer numbers as ``*``: what is the same in every layer.

    >>> family_of("model.layers.3.mlp.down_proj")
    'model.layers.*.mlp.down_proj'
    """
    return _LAYER_NUMBER.sub("*", name)


def install_boundaries(
    operators: Iterable[Operator], reach: Callable[[str], None]
) -> list[RemovableHandle]:
    """Put a boundary before every operator.

    Install after graph capture: captured graphs then stay free of hooks.

    Args:
        operators: Their modules are changed in place (forward pre-hooks are added).
        reach: Called with the operator's name before it runs. Its return value is ignored.

    Returns:
        Handles that remove the boundaries.
    """
    return [
        operator.module.register_forward_pre_hook(_hook(reach, operator.name))
        for operator in operators
    ]


def _kind_of(module: nn.Module, operator_types: Mapping[type, str]) -> str | None:
    for operator_type, kind in operator_types.items():
        if isinstance(module, operator_type):
            return kind
    return None


def _hook(reach: Callable[[str], None], name: str) -> Callable[[nn.Module, Any], None]:
    def boundary(_module: nn.Module, _inputs: Any) -> None:
        reach(name)  # and return None always: any other value would replace the inputs

    return boundary
