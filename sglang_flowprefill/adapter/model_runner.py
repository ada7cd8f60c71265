"""Extends SGLang's model runner: prefill forwards that stop at operator boundaries and resume.

Composition, not a subclass: SGLang builds the runner, captures its graphs and plans its memory;
then ``PreemptibleModelRunner`` puts boundaries on the loaded model and hands out cursors.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.layernorm import (
    Gemma3RMSNorm,
    Gemma4RMSNorm,
    GemmaRMSNorm,
    LayerNorm,
    RMSNorm,
)
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_flowprefill.adapter.cpu_ops import use_compiled_ops
from sglang_flowprefill.adapter.forward_state import AttentionState, ForwardState
from sglang_flowprefill.errors import UnsupportedSGLangError
from sglang_flowprefill.executor import Checkpoint, Cursor, install_boundaries

OPERATOR_TYPES: dict[type, str] = {
    RMSNorm: "norm",
    GemmaRMSNorm: "norm",
    Gemma3RMSNorm: "norm",
    Gemma4RMSNorm: "norm",
    LayerNorm: "norm",
    LinearBase: "linear",
    RadixAttention: "attention",
    FusedMoE: "experts",
    LogitsProcessor: "logits",
}
"""Module classes that launch one operator (lm_head is launched by the logits processor)."""

MIN_BOUNDARIES_PER_LAYER = 5
"""Fewer means that most of the model runs outside hooked modules: not operator level."""


class PreemptibleModelRunner:
    """Makes prefill forwards of one loaded model suspendable.

    Args:
        model_runner: SGLang's ``ModelRunner`` after graph capture.
        should_yield: Tells at each boundary whether the scheduler wants control.

    Raises:
        UnsupportedSGLangError: The model has too few operators that are called as modules, or
            its attention backend is unknown.
    """

    def __init__(self, model_runner: Any, should_yield: Callable[[], bool]) -> None:
        self._checkpoint = Checkpoint(should_yield)
        self._attention = AttentionState(model_runner.attn_backend)
        if str(model_runner.device) == "cpu":
            use_compiled_ops(model_runner.model)
        self.boundaries = install_boundaries(
            model_runner.model, OPERATOR_TYPES, self._checkpoint.reach
        )
        self.num_layers = int(model_runner.model_config.num_hidden_layers)
        self.require_boundaries(len(self.boundaries), "found in the model")
        self._install_tile_boundaries(model_runner.attn_backend)

    def cursor(self, run: Callable[[], Any], *, is_preemptible: bool = True) -> Cursor[Any]:
        """Return a cursor, not yet started, for one prefill forward."""
        return Cursor(
            run, self._checkpoint, ForwardState(self._attention), is_preemptible=is_preemptible
        )

    def require_boundaries(self, count: int, where: str) -> None:
        """Refuse a model that is not preemptible at operator level.

        Raises:
            UnsupportedSGLangError: Fewer boundaries than five per layer.
        """
        needed = MIN_BOUNDARIES_PER_LAYER * self.num_layers
        if count < needed:
            kinds = dict(Counter(boundary.kind for boundary in self.boundaries))
            raise UnsupportedSGLangError(
                f"only {count} operator boundaries {where}, {needed} needed "
                f"({MIN_BOUNDARIES_PER_LAYER} for each of {self.num_layers} layers; {kinds}): "
                "most of this model runs outside hooked modules; serve it without FlowPrefill"
            )

    def _install_tile_boundaries(self, backend: AttentionBackend) -> None:
        if hasattr(backend, "reach"):
            backend.reach = self._checkpoint.reach
