"""Extends SGLang's model runner: prefill forwards that stop at operator boundaries and resume.

Composition, not a subclass: SGLang builds the runner, captures its graphs and plans its memory;
then ``PreemptibleModelRunner`` puts boundaries on the loaded model and hands out cursors.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from torch import nn

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.adapter.model.attention import TiledTorchNativeBackend
from sglang_flowprefill.adapter.model.coverage import Coverage
from sglang_flowprefill.adapter.model.cpu_ops import use_compiled_ops
from sglang_flowprefill.adapter.model.direct_decoder import DirectDecoder, can_run_directly
from sglang_flowprefill.adapter.model.doorbell import (
    MakeProduct,
    is_all_linear,
    require_plain_weights,
    stoppable_forward,
)
from sglang_flowprefill.adapter.model.forward_state import AttentionState, ForwardState
from sglang_flowprefill.adapter.model.packed_weights import PackedWeights
from sglang_flowprefill.adapter.model.prompt_logprobs import tile_prompt_logprobs
from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.executor import (
    Checkpoint,
    Cursor,
    Operator,
    RowTiling,
    RunAhead,
    device_named,
    family_of,
    install_boundaries,
    no_boundary,
)

_ROW_WISE_KINDS = frozenset({"norm", "linear"})


class PreemptibleModelRunner:
    """Makes prefill forwards of one loaded model suspendable.

    Args:
        model_runner: SGLang's ``ModelRunner`` after graph capture.
        should_yield: Tells at each boundary whether the scheduler wants control.
        granularity: Where boundaries are: operator, half-layer, layer, chunk or off (the last
            two: nowhere inside a forward pass).
        run_ahead: Operators that may be launched and unfinished on an asynchronous device.
        asks_once: Call ``should_yield`` exactly once at each boundary, on any device.
        make_product: Of products that can be stopped, which long linear layers then run as; None:
            they run in tiles.

    Attributes:
        num_boundaries: Boundaries installed.
        num_layers: Layers of the model.
        checkpoint: Where boundaries report.
        activation_bytes: What a token of an unfinished prefill holds at the widest boundary, by the
            widths of the model: an upper bound, since an MLP in tiles is never whole.

    Raises:
        UnsupportedSGLangError: Too little of the model runs in operators that are called as
            modules, or its attention backend is unknown.
        ConfigError: Linear layers shall be stopped and are quantised.
    """

    def __init__(
        self,
        model_runner: Any,
        should_yield: Callable[[], bool],
        granularity: str = "operator",
        run_ahead: int = 1,
        *,
        asks_once: bool = False,
        make_product: MakeProduct | None = None,
    ) -> None:
        model = model_runner.model
        device = str(model_runner.device)
        self.checkpoint = Checkpoint(
            should_yield, RunAhead(device_named(device), run_ahead), asks_once=asks_once
        )
        self.num_layers = int(model_runner.model_config.num_hidden_layers)
        self._granularity = granularity
        self._attention = AttentionState(model_runner.attn_backend)
        self._packed_weights: PackedWeights | None = None
        is_direct = False
        if device == "cpu":
            use_compiled_ops(model)
            self._packed_weights = PackedWeights(model)
            is_direct = can_run_directly(model, model_runner.attn_backend)
        coverage = self._coverage = Coverage(model, self.num_layers, granularity)
        operators = coverage.operators
        self.num_boundaries = len(install_boundaries(coverage.hooked, self.checkpoint.reach))
        coverage.require_boundaries(self.num_boundaries, "found in the model")
        coverage.require_parameters()
        self.activation_bytes = _activation_bytes(model_runner, operators)
        self._tiling = RowTiling(
            self.checkpoint.reach,
            is_active=lambda: self.checkpoint.cursor is not None,
            synchronize=self.checkpoint.drain,
        )
        if make_product is not None:
            require_plain_weights(operators)
        _add_tiled_modules(self._tiling, model, operators, self.checkpoint, make_product)
        if granularity == "operator":
            tile_prompt_logprobs(model, device, self.checkpoint.reach)
        self._tiled_attention = _tiled_attention(model_runner.attn_backend)
        if self._tiled_attention is not None:
            self._tiled_attention.reach = lambda: self.checkpoint.reach("attention tile")
        if is_direct:
            boundaries = {o.module: partial(self.checkpoint.reach, o.name) for o in coverage.hooked}
            DirectDecoder(
                model.model,
                model_runner.attn_backend,
                lambda module: boundaries.get(module, no_boundary),
                lambda: self._tiling.max_whole_rows,
            )

    def cursor(
        self, run: Callable[[], Any], *, is_preemptible: bool = True, is_bounded: bool = True
    ) -> Cursor[Any]:
        """Return a cursor, not yet started, for one prefill forward."""
        return Cursor(
            run,
            self.checkpoint,
            ForwardState(self._attention),
            is_preemptible=is_preemptible,
            is_bounded=is_bounded,
        )

    @contextmanager
    def measuring_operators(self) -> Iterator[None]:
        """Measure how long operators take per row in the forward passes within."""
        with self._tiling.measuring():
            yield

    @property
    def operator_seconds_per_row(self) -> dict[str, float]:
        """What ``measuring_operators`` found, by family of modules."""
        return self._tiling.seconds_per_row

    @property
    def num_tiles(self) -> int:
        """Row tiles run so far."""
        return self._tiling.num_tiles

    @property
    def num_tile_tokens(self) -> int:
        """Tokens in them, once for each operator in tiles."""
        return self._tiling.num_tile_rows

    def limit_operators(
        self, seconds_per_row: Mapping[str, float], cost: PrefillCost, max_operator_s: float
    ) -> None:
        """Run operators that would take longer in tiles, at granularity ``operator``.

        Args:
            seconds_per_row: As measured, by family of modules.
            cost: Predictor of whole prefills; tells the time of attention.
            max_operator_s: Seconds of a tile; 0: operators stay whole.
        """
        limit_s = max_operator_s if self._granularity == "operator" else 0.0
        limit_s = limit_s or math.inf
        self._tiling.limit(seconds_per_row, limit_s)
        if self._tiled_attention is not None:
            pair_s = cost.per_attention_pair_s / self.num_layers
            self._tiled_attention.limit_tiles(limit_s / pair_s if pair_s > 0.0 else math.inf)

    def on_weights_changed(self) -> None:
        """Forget what was derived from the weights. Call after anything that may write them."""
        if self._packed_weights is not None:
            self._packed_weights.forget()

    def require_boundaries(self, count: int, where: str) -> None:
        """Refuse a model that is not preemptible at the granularity asked for.

        Raises:
            UnsupportedSGLangError: Too few boundaries; lists the modules that have none.
        """
        self._coverage.require_boundaries(count, where)


class _TiledAttention(Protocol):
    """Prefill attention that runs in tiles.

    Attributes:
        reach: Checkpoint called between two of them.
    """

    reach: Callable[[], None]

    def limit_tiles(self, max_pairs: float) -> None:
        """Cut attention over more than this many query-key pairs (of one head)."""


def _tiled_attention(backend: Any) -> _TiledAttention | None:
    if isinstance(backend, TiledTorchNativeBackend):
        return backend
    return releases.scheduling().tile_flashinfer(backend)


def _add_tiled_modules(
    tiling: RowTiling,
    model: nn.Module,
    operators: list[Operator],
    checkpoint: Checkpoint,
    make_product: MakeProduct | None,
) -> None:
    """Let norms, linear layers and whole MLP or expert blocks run in row tiles.

    With ``make_product``, linear layers stop by themselves instead, and so do MLPs made of them.
    """
    for name, module in model.named_modules():
        if _is_row_wise_block(module) and not (make_product and is_all_linear(module)):
            tiling.add(module, name, family_of(name), has_boundaries=True)
    for operator in operators:
        if operator.kind in _ROW_WISE_KINDS:
            stoppable = None
            if make_product is not None and operator.kind == "linear":
                stoppable = stoppable_forward(operator, checkpoint, make_product)
            tiling.add(
                operator.module,
                operator.name,
                family_of(operator.name),
                has_boundaries=False,
                stoppable=stoppable,
            )


def _is_row_wise_block(module: nn.Module) -> bool:
    """Tell an MLP or a routed block of experts by the names that SGLang's models give."""
    children = dict(module.named_children())
    is_mlp = {"gate_up_proj", "down_proj"} <= children.keys()
    return is_mlp or isinstance(children.get("experts"), FusedMoE)


def _activation_bytes(model_runner: Any, operators: list[Operator]) -> float:
    config = model_runner.model_config
    widths = [
        operator.module.input_size + operator.module.output_size
        for operator in operators
        if isinstance(operator.module, LinearBase)
    ]
    width = 2 * config.hidden_size + max(widths, default=0)  # hidden states, residual, an operator
    return float(width * model_runner.dtype.itemsize)
