"""Finds the operators of a loaded model and puts a boundary before each.

An operator is a leaf module that launches the work: a norm, a linear layer, attention, an expert
block, the logits. Which classes those are is the caller's knowledge. Modules that keep scratch
between calls (rotary embedding, top-k routing, activations) are not operators: no boundary may
fall between their write and their read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, slots=True)
class OperatorBoundary:
    """One boundary.

    Attributes:
        name: Qualified name of the module, such as ``model.layers.3.mlp.down_proj``.
        kind: Operator kind: norm, linear, attention, experts or logits.
        handle: Removes the boundary.
    """

    name: str
    kind: str
    handle: RemovableHandle


def install_boundaries(
    model: nn.Module, operator_types: Mapping[type, str], reach: Callable[[], None]
) -> list[OperatorBoundary]:
    """Put a boundary before every operator of a model.

    Install after graph capture: captured graphs then stay free of hooks.

    Args:
        model: The loaded model; changed in place (forward pre-hooks are added).
        operator_types: Operator kind by module class; subclasses count.
        reach: Called before the operator runs. Its return value is ignored.

    Returns:
        The boundaries in the order of ``model.named_modules()``.
    """
    boundaries = []
    for name, module in model.named_modules():
        kind = _kind_of(module, operator_types)
        if kind is not None:
            handle = module.register_forward_pre_hook(_hook(reach))
            boundaries.append(OperatorBoundary(name, kind, handle))
    return boundaries


def remove_boundaries(boundaries: list[OperatorBoundary]) -> None:
    """Undo ``install_boundaries``."""
    for boundary in boundaries:
        boundary.handle.remove()


def _kind_of(module: nn.Module, operator_types: Mapping[type, str]) -> str | None:
    for operator_type, kind in operator_types.items():
        if isinstance(module, operator_type):
            return kind
    return None


def _hook(reach: Callable[[], None]) -> Callable[[nn.Module, Any], None]:
    def boundary(_module: nn.Module, _inputs: Any) -> None:
        reach()  # and return None always: any other value would replace the inputs

    return boundary
