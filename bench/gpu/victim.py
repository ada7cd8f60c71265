"""A prefill that can be made to wait, at one way of cutting it; and somebody who arrives.

An arrival is a moment drawn beforehand: whoever asks after it is told yes. No thread sets a flag,
for a thread would have to wait for the interpreter lock that the measured code holds.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from sglang_flowprefill.kernels.triton.doorbell import Doorbell
from sglang_flowprefill.kernels.triton.doorbell_gemm import DoorbellGemm
from torch import nn

from bench.gpu.cuts import Cut
from bench.gpu.llama import QUERY_TILE_MULTIPLE, Attention, Llama, Mlp, Norm
from sglang_flowprefill.executor import (
    Checkpoint,
    Cursor,
    Operator,
    RowTiling,
    RunAhead,
    family_of,
    find_operators,
    install_boundaries,
)
from sglang_flowprefill.executor.devices import CudaDevice

OPERATOR_TYPES = {Norm: "norm", nn.Linear: "linear", Attention: "attention"}


class _NoState:
    """Nothing of torch's is global here."""

    def enter(self) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Costs:
    """What decides where operators are cut: measured once, on the uncut model."""

    seconds_per_row: dict[str, float] = field(default_factory=dict)
    seconds_per_pair: float = 0.0


class Victim:
    """A model with boundaries, and the arrivals that it answers to.

    Args:
        model: Its modules are changed in place while ``cut`` is in force.
        token_ids: ``[num_tokens]``, the prompt.

    Attributes:
        due_s: The next arrival, by ``perf_counter``.
    """

    def __init__(self, model: Llama, token_ids: torch.Tensor) -> None:
        self.due_s = math.inf
        self._model = model
        self._token_ids = token_ids
        self._doorbell = Doorbell(token_ids.device)

    @property
    def num_tokens(self) -> int:
        """Length of the prompt."""
        return self._token_ids.shape[0]

    def run_uncut(self) -> torch.Tensor:
        """Run the prefill without a cursor; the result may not be there yet."""
        return self._model(self._token_ids)

    @contextmanager
    def cut(self, cut: Cut, costs: Costs) -> Iterator[Callable[[], Cursor[torch.Tensor]]]:
        """Make the prefill preemptible in this way; give a function that begins it anew."""
        run_ahead = None if cut.run_ahead is None else RunAhead(CudaDevice(), cut.run_ahead)
        checkpoint = Checkpoint(self._is_due, run_ahead)
        operators = find_operators(self._model, OPERATOR_TYPES)
        hooked = [operator for operator in operators if operator.name.endswith(cut.starts)]
        handles = install_boundaries(hooked, checkpoint.reach)
        originals = self._limit_operators(cut, costs, checkpoint, operators)
        try:
            yield lambda: Cursor(self.run_uncut, checkpoint, _NoState())
        finally:
            for handle in handles:
                handle.remove()
            for module in originals:
                del module.forward  # the class's own comes back
            for attention in self._attentions():
                attention.max_tile_pairs = math.inf
                attention.query_multiple = QUERY_TILE_MULTIPLE

    def measure_costs(self) -> Costs:
        """Return what operators cost per row, and attention per query-key pair."""
        operators = find_operators(self._model, OPERATOR_TYPES)
        tiling = RowTiling(lambda _name: None, lambda: False, torch.cuda.synchronize)
        originals = _add_all(tiling, self._model, operators)
        attention_s: list[float] = []
        handles = _time_attention(self._attentions(), attention_s)
        with tiling.measuring():
            self.run_uncut()
        for module in originals:
            del module.forward
        for handle in handles:
            handle.remove()
        pairs = self.num_tokens**2 / 2
        return Costs(tiling.seconds_per_row, sorted(attention_s)[len(attention_s) // 2] / pairs)

    def _is_due(self) -> bool:
        return perf_counter() >= self.due_s

    def _attentions(self) -> list[Attention]:
        return [module for module in self._model.modules() if isinstance(module, Attention)]

    def _limit_operators(
        self, cut: Cut, costs: Costs, checkpoint: Checkpoint, operators: list[Operator]
    ) -> list[nn.Module]:
        if cut.max_operator_ms is None:
            return []
        max_s = cut.max_operator_ms / 1000
        if "attention" in cut.tiled:
            for attention in self._attentions():
                attention.max_tile_pairs = max_s / costs.seconds_per_pair
                attention.query_multiple = cut.query_multiple
                attention.reach = lambda: checkpoint.reach("attention tile")
        if "rows" not in cut.tiled:
            return []
        tiling = RowTiling(checkpoint.reach, lambda: checkpoint.cursor is not None)
        if cut.has_doorbell:
            originals = _add_linears(tiling, operators, checkpoint, self._doorbell)
        else:
            originals = _add_all(tiling, self._model, operators)
        tiling.limit(costs.seconds_per_row, max_s)
        return originals


def _add_all(tiling: RowTiling, model: Llama, operators: list[Operator]) -> list[nn.Module]:
    """Let norms, linear layers and whole MLPs run in row tiles, as the server does."""
    changed: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, Mlp):
            tiling.add(module, name, family_of(name), has_boundaries=True)
            changed.append(module)
    for operator in operators:
        if operator.kind != "attention":
            family = family_of(operator.name)
            tiling.add(operator.module, operator.name, family, has_boundaries=False)
            changed.append(operator.module)
    return changed


def _add_linears(
    tiling: RowTiling, operators: list[Operator], checkpoint: Checkpoint, doorbell: Doorbell
) -> list[nn.Module]:
    """Let linear layers run as products that the doorbell stops."""
    changed = []
    for operator in operators:
        if operator.kind == "linear":
            tiling.add(
                operator.module,
                operator.name,
                family_of(operator.name),
                has_boundaries=False,
                stoppable=_stoppable(operator, checkpoint, doorbell),
            )
            changed.append(operator.module)
    return changed


def _stoppable(
    operator: Operator, checkpoint: Checkpoint, doorbell: Doorbell
) -> Callable[[torch.Tensor], torch.Tensor]:
    weight = operator.module.weight
    assert isinstance(weight, torch.Tensor), "a linear layer has one weight"

    def forward(x: torch.Tensor) -> torch.Tensor:
        work = DoorbellGemm(x, weight, doorbell)
        checkpoint.run(work, operator.name)
        return work.output

    return forward


def _time_attention(attentions: list[Attention], seconds: list[float]) -> list[Any]:
    started_s = 0.0

    def before(_module: nn.Module, _inputs: Any) -> None:
        nonlocal started_s
        torch.cuda.synchronize()
        started_s = perf_counter()

    def after(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        torch.cuda.synchronize()
        seconds.append(perf_counter() - started_s)

    return [
        handle
        for attention in attentions
        for handle in (
            attention.register_forward_pre_hook(before),
            attention.register_forward_hook(after),
        )
    ]
