"""The paper's experiments, simulated: maximum goodput, tighter objectives, blocking, ablations.

Four models on A800s, the window of QwenTrace that the authors replay, their objectives. What is
known of the paper's own numbers is second-hand (its body could not be had): ranges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from types import MappingProxyType

from sglang_flowprefill.sim.costs import costs_for
from sglang_flowprefill.sim.costs.pass_cost import CorrectedCost
from sglang_flowprefill.sim.deployment import HOST_S, ServerSettings, Worker, find_system
from sglang_flowprefill.sim.gpus import find_gpu
from sglang_flowprefill.sim.shapes import KNOWN_SHAPES
from sglang_flowprefill.sim.study.goodput import RunLength, max_rate
from sglang_flowprefill.sim.study.serving import Deployment, Run, attempt
from sglang_flowprefill.sim.workload import Workload

MODELS: Mapping[str, int] = MappingProxyType(
    {"llama-3.1-8b": 1, "qwen2.5-14b": 2, "llama-3.1-70b": 4, "qwen3-30b-a3b": 1}
)
"""GPUs of each; those of 70B and 30B-A3B are assumed."""

SYSTEMS = (
    "flowprefill",
    "half-layer",
    "layer",
    "cp2k-s-edf",
    "cp8k-s-edf",
    "vllm-cp2k",
    "vllm-cp8k",
    "sglang",
    "priority",
    "distserve",
)
SLO_SCALES = tuple(round(0.4 + 0.2 * step, 1) for step in range(9))
PAPER_FACTOR = (4.7, 5.6)
PAPER_TIGHTER = (1.5, 3.1)
PAPER_BLOCKING_FACTOR = (3.5, 4.2)
PAPER_BLOCKING_MS = 4.5
_LENGTH = RunLength(654, 120.0)
_GOAL = 0.9


@dataclass(frozen=True, slots=True)
class Blocking:
    """Mean blocking time in seconds by granularity."""

    layer_s: float
    half_layer_s: float
    operator_s: float

    @property
    def factor(self) -> float:
        """Layers over operators."""
        return self.layer_s / self.operator_s


def paper_worker(model: str) -> Worker:
    """Return an instance of one of the four models on A800s."""
    shape, gpu, tp = KNOWN_SHAPES[model], find_gpu("a800"), MODELS[model]
    because = f"plus {HOST_S * 1e3:g} ms a pass (assumed)"
    cost = CorrectedCost(costs_for(shape, gpu, tp), 1.0, HOST_S, because=because)
    return Worker.of(shape, gpu, tp, cost)


def goodputs(model: str, workload: Workload, systems: Sequence[str] = SYSTEMS) -> dict[str, float]:
    """Return the maximum goodput of each system in requests/s."""
    worker = paper_worker(model)
    return {
        name: max_rate(
            Deployment(worker, find_system(name)), workload, goal=_GOAL, length=_LENGTH
        ).rate_per_s
        for name in systems
    }


def attainment_by_slo_scale(
    model: str, workload: Workload, rate_per_s: float, systems: Sequence[str]
) -> dict[str, list[float]]:
    """Return the share of requests in time at each of ``SLO_SCALES``, by system."""
    worker = paper_worker(model)
    return {
        name: [
            _run(
                Deployment(worker, find_system(name)), workload.with_slo_scale(s), rate_per_s
            ).attained
            for s in SLO_SCALES
        ]
        for name in systems
    }


def blocking(model: str, workload: Workload, rate_per_s: float) -> Blocking:
    """Return the mean blocking time at each granularity, waiting at every boundary, no tiles."""
    means = [
        fmean(
            _run(
                Deployment(
                    paper_worker(model),
                    find_system("flowprefill"),
                    settings=ServerSettings(
                        granularity=granularity, run_ahead=1, max_operator_s=0.0
                    ),
                ),
                workload,
                rate_per_s,
            ).blocking_s
        )
        for granularity in ("layer", "half-layer", "operator")
    ]
    return Blocking(*means)


def ablation(model: str, workload: Workload) -> dict[str, float]:
    """Return the maximum goodput without batching, without slack, and with the published order."""
    base = ServerSettings()
    variations = {
        "all of it": base,
        "without batching": replace(base, max_batch_tokens=1),
        "without slack (EDF)": replace(base, policy="edf"),
        "the published order of doomed requests": replace(base, policy="s-edf-paper"),
        "neither batching nor slack": replace(base, policy="edf", max_batch_tokens=1),
    }
    worker = paper_worker(model)
    return {
        name: max_rate(
            Deployment(worker, find_system("flowprefill"), settings=settings),
            workload,
            goal=_GOAL,
            length=_LENGTH,
        ).rate_per_s
        for name, settings in variations.items()
    }


def tightest_scale(attained: Sequence[float]) -> float | None:
    """Return the smallest of ``SLO_SCALES`` from which on the goal is met; None if at none."""
    tightest = None
    for scale, share in sorted(zip(SLO_SCALES, attained, strict=True), reverse=True):
        if share < _GOAL:
            break
        tightest = scale
    return tightest


def _run(deployment: Deployment, workload: Workload, rate_per_s: float) -> Run:
    run = attempt(deployment, workload, rate_per_s, _LENGTH.num_requests(rate_per_s, 1))
    assert run is not None, "nobody asked to give up"
    return run
