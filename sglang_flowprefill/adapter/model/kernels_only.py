"""Our CPU kernels under SGLang's own scheduler, and nothing else of ours.

Attention by registration, everything else by two hooks: one puts the kernels on the model when it
is complete, one drops packed weights when a message may have changed the weights.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

from sglang_flowprefill.adapter.model.attention import register_tiled_attention
from sglang_flowprefill.adapter.model.cpu_ops import use_compiled_ops
from sglang_flowprefill.adapter.model.direct_decoder import DirectDecoder, can_run_directly
from sglang_flowprefill.adapter.model.packed_weights import PackedWeights
from sglang_flowprefill.adapter.serving.messages import needs_quiet_engine
from sglang_flowprefill.executor import no_boundary

logger = logging.getLogger(__name__)


class KernelsOnly:
    """The kernels of one scheduler process, which may hold several models."""

    def __init__(self) -> None:
        register_tiled_attention()
        self._packed_weights: list[PackedWeights] = []

    def on_model_ready(self, _result: None, model_runner: Any) -> None:
        """Give a model our operators (AFTER hook of ``ModelRunner.init_attention_backends``)."""
        if str(model_runner.device) != "cpu":
            return
        num_ops = use_compiled_ops(model_runner.model)
        packed = PackedWeights(model_runner.model)
        self._packed_weights.append(packed)
        if can_run_directly(model_runner.model, model_runner.attn_backend):
            DirectDecoder(
                model_runner.model.model,
                model_runner.attn_backend,
                lambda _operator: no_boundary,
                lambda: math.inf,
            )
        logger.info(
            "SGLang's own scheduler with FlowPrefill's CPU kernels: %d compiled operators, "
            "%d layers with packed weights",
            num_ops,
            packed.num_layers,
        )

    def on_messages(self, _result: None, _scheduler: Any, recv_reqs: Sequence[Any]) -> None:
        """Forget changed weights (AFTER hook of ``Scheduler.process_input_requests``)."""
        if any(needs_quiet_engine(message) for message in recv_reqs):
            for packed in self._packed_weights:
                packed.forget()
