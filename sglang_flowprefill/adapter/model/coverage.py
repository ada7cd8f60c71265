"""How much of a model runs in operators: what may be suspended, and what is too little.

Judged on the loaded model by the server, and on a model without weights by ``doctor``.
"""

from collections import Counter

from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from torch import nn

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.errors import UnsupportedSGLangError
from sglang_flowprefill.executor import (
    Operator,
    find_operators,
    first_of_each_layer,
    halves_of_each_layer,
    uncovered_modules,
)

OPERATOR_TYPES: dict[type, str] = {
    **dict.fromkeys(releases.scheduling().NORMS, "norm"),
    LinearBase: "linear",
    RadixAttention: "attention",
    FusedMoE: "experts",
    LogitsProcessor: "logits",
}
"""Module classes that launch one operator (lm_head is launched by the logits processor)."""

_LOOKED_UP = (VocabParallelEmbedding, nn.Embedding)
"""Modules whose parameters no operator covers, and need not: rows are looked up."""

_MIN_BOUNDARIES_PER_LAYER = {"operator": 5, "half-layer": 2, "layer": 1, "chunk": 0, "off": 0}
_MAX_UNCOVERED_FRACTION = 0.1


class Coverage:
    """The operators of a model, and what lies outside them.

    Args:
        model: With or without weights.
        num_layers: Its layers.
        granularity: Where boundaries are: operator, half-layer, layer, chunk or off.

    Attributes:
        operators: All of them.
        hooked: Those that have a boundary at this granularity.
        kinds: Number of operators by kind.
        uncovered: Parameters outside operators, by family of modules.
    """

    def __init__(self, model: nn.Module, num_layers: int, granularity: str) -> None:
        self.operators = find_operators(model, OPERATOR_TYPES)
        self.hooked = _operators_at(granularity, self.operators)
        self.kinds = dict(Counter(operator.kind for operator in self.operators))
        self.uncovered = uncovered_modules(model, self.operators, _LOOKED_UP)
        self._num_layers = num_layers
        self._granularity = granularity
        self._num_parameters = sum(p.numel() for p in model.parameters())

    def require_boundaries(self, count: int, where: str) -> None:
        """Refuse a model that is not preemptible at the granularity asked for.

        Raises:
            UnsupportedSGLangError: Too few boundaries; lists the modules that have none.
        """
        per_layer = _MIN_BOUNDARIES_PER_LAYER[self._granularity]
        needed = per_layer * self._num_layers
        if count < needed:
            raise UnsupportedSGLangError(
                f"only {count} operator boundaries {where}, {needed} needed "
                f"({per_layer} for each of {self._num_layers} layers; {self.kinds}). "
                f"{self._without_boundary()}"
            )

    def require_parameters(self) -> None:
        """Refuse a model of which a large part runs in one go although boundaries abound.

        Raises:
            UnsupportedSGLangError: Lists the modules without a boundary.
        """
        num_uncovered = sum(self.uncovered.values())
        if num_uncovered > _MAX_UNCOVERED_FRACTION * self._num_parameters:
            raise UnsupportedSGLangError(
                f"{num_uncovered} of {self._num_parameters} parameters are used outside operators. "
                f"{self._without_boundary()}"
            )

    def _without_boundary(self) -> str:
        modules = ", ".join(sorted(self.uncovered)) or "none with parameters"
        return (
            f"Modules without a boundary: {modules}. Serve this model without FlowPrefill "
            "(python -m sglang.launch_server)"
        )


def _operators_at(granularity: str, operators: list[Operator]) -> list[Operator]:
    if granularity == "operator":
        return operators
    if granularity == "half-layer":
        return halves_of_each_layer(operators)
    return first_of_each_layer(operators) if granularity == "layer" else []
