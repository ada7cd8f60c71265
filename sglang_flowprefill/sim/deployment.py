"""A deployment to simulate: which model on which GPUs, served by which system, how many of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from sglang_flowprefill.core import (
    DecodePacing,
    Fcfs,
    PolicyOptions,
    PrefillCost,
    PrefillDecider,
    SEdf,
    make_policy,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.loop.event_loop import LoopSettings
from sglang_flowprefill.sim.costs.fitted import predictor_of, saturation_tokens
from sglang_flowprefill.sim.costs.pass_cost import CorrectedCost, PassCost
from sglang_flowprefill.sim.device import (
    GRANULARITIES,
    MEMORY_FRACTION,
    Device,
    OperatorShare,
    kv_capacity_tokens,
    operator_shares,
)
from sglang_flowprefill.sim.gpus import Gpu
from sglang_flowprefill.sim.instances.flowprefill import FlowPrefillInstance
from sglang_flowprefill.sim.instances.instance import Instance
from sglang_flowprefill.sim.instances.steps import PriorityByClass, StepInstance, StepRules
from sglang_flowprefill.sim.shapes import ModelShape

HOST_S = 0.008
"""On top of the kernels of each prefill pass: eager launches, engine, synchronisation.

What the authors' shortest recorded prefills on an A800 take beyond the tables (7 to 10 ms); assumed
elsewhere.
"""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings of this package's server that a simulation knows, with its defaults.

    Attributes:
        policy: Order of prefills.
        granularity: Where a prefill may be suspended.
        max_operator_s: A longer operator runs in tiles; 0 for none.
        run_ahead: Launched operators that are unfinished at any time.
        max_chunk_tokens: Tokens of a forward pass over one prompt.
        max_batch_tokens: Budget of a batch; None for where throughput saturates; 0 for no batches.
        tpot_slo_s: Objective from one token to the next, of requests that name none.
        max_decode_delay: A due decode step waits up to this multiple of it for first tokens.
        max_suspended: Prefills that may stand suspended.
        suspended_bytes: What those may hold.
        max_restarts: How often a prefill may be dropped for memory.
        max_preemptions: How often it may be preempted.
        preemption_margin_s: By how much a newcomer must be more urgent.
        min_preemption_gain_s: A prefill with less time left is not preempted.
        starvation_factor: After this many times its SLO a request goes first.
    """

    policy: str = "s-edf"
    granularity: str = "operator"
    max_operator_s: float = 0.01
    run_ahead: int = 3
    max_chunk_tokens: int = 8192
    max_batch_tokens: int | None = None
    tpot_slo_s: float = 0.1
    max_decode_delay: float = 2.0
    max_suspended: int = 16
    suspended_bytes: float = 4096 * 2**20
    max_restarts: int = 2
    max_preemptions: int = 100
    preemption_margin_s: float = 0.005
    min_preemption_gain_s: float = 0.005
    starvation_factor: float = 30.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of the memory for KV.

    Attributes:
        num_kv_tokens: KV slots, as the server's log says; None for an estimate.
        fraction: Share of GPU memory for weights, KV and activations, for the estimate.
    """

    num_kv_tokens: int | None = None
    fraction: float = MEMORY_FRACTION


@dataclass(frozen=True, slots=True)
class Worker:
    """The hardware of one instance.

    Attributes:
        name: Of model and GPUs, for titles.
        cost: What passes take, all corrections included.
        operators: Of a layer.
        num_layers: Layers.
        num_gpus: GPUs of an instance.
        num_kv_tokens: KV slots; None for any number.
        bytes_per_token: Activations of a suspended prefill.
        page_tokens: KV slots of a page.
        kv_bytes_per_token: Of one token, for transfers.
        link_bytes_per_s: Of a KV transfer.
        tile_tax: How much longer an operator in tiles takes.
    """

    name: str
    cost: PassCost
    operators: Sequence[OperatorShare]
    num_layers: int
    num_gpus: int = 1
    num_kv_tokens: int | None = None
    bytes_per_token: int = 0
    page_tokens: int = 1
    kv_bytes_per_token: int = 0
    link_bytes_per_s: float = 50e9
    tile_tax: float = 0.05

    @classmethod
    def of(
        cls, shape: ModelShape, gpu: Gpu, tp: int, cost: PassCost, memory: Memory | None = None
    ) -> "Worker":
        """Return the hardware for a model on so many GPUs.

        Args:
            shape: The model.
            gpu: The GPU.
            tp: How many of them share a layer.
            cost: What passes take.
            memory: For KV; None for an estimate.

        Raises:
            PlanError: The model does not fit, or cannot be divided so.
        """
        if tp < 1 or shape.num_heads % tp:
            raise PlanError(f"--tp {tp}: {shape.name} has {shape.num_heads} heads to divide")
        memory = memory or Memory()
        num_kv_tokens = memory.num_kv_tokens
        if num_kv_tokens is None:
            num_kv_tokens = kv_capacity_tokens(shape, gpu, tp, memory.fraction)
        return cls(
            name=f"{shape.name} on {tp} x {gpu.name}",
            cost=cost,
            operators=operator_shares(shape, gpu, tp),
            num_layers=shape.num_layers,
            num_gpus=tp,
            num_kv_tokens=num_kv_tokens,
            bytes_per_token=shape.held_bytes_per_token // tp,
            page_tokens=16,
            kv_bytes_per_token=shape.kv_bytes_per_token,
        )

    def scaled(self, factor: float) -> "Worker":
        """Return it with all costs this many times as high."""
        return replace(self, cost=CorrectedCost(self.cost, factor))


MakeInstance = Callable[[Worker, ServerSettings], Callable[[], Instance]]


@dataclass(frozen=True, slots=True)
class System:
    """What serves.

    Attributes:
        name: As users write it.
        what: What it stands for.
        make: Prepares everything that instances share; returns what makes each of them.
    """

    name: str
    what: str
    make: MakeInstance


def flowprefill_instances(worker: Worker, settings: ServerSettings) -> Callable[[], Instance]:
    """Prepare instances of this package's server.

    Raises:
        PlanError: A setting names nothing.
    """
    if settings.granularity not in GRANULARITIES:
        known = ", ".join(GRANULARITIES)
        raise PlanError(f"--granularity {settings.granularity!r}: choose one of {known}")
    predictor = predictor_of(worker.cost)
    budget = settings.max_batch_tokens
    if budget is None:
        budget = saturation_tokens(worker.cost)
    is_tiled = settings.granularity == "operator" and settings.max_operator_s > 0.0
    device = Device(
        worker.cost,
        worker.operators,
        worker.num_layers,
        granularity=settings.granularity,
        num_in_flight=settings.run_ahead if settings.granularity == "operator" else 1,
        max_operator_s=settings.max_operator_s if is_tiled else math.inf,
        tile_tax=worker.tile_tax,
        num_kv_tokens=worker.num_kv_tokens,
        page_tokens=worker.page_tokens,
        max_chunk_tokens=None if settings.granularity == "off" else settings.max_chunk_tokens,
        bytes_per_token=worker.bytes_per_token,
    )
    decider = PrefillDecider(
        make_policy(settings.policy, PolicyOptions(settings.starvation_factor)),
        predictor,
        BatchLimits(max(min(budget, settings.max_chunk_tokens), 1)),
        max_suspended=settings.max_suspended,
        max_suspended_bytes=settings.suspended_bytes,
        max_restarts=settings.max_restarts,
        max_preemptions=settings.max_preemptions,
        preemption_margin_s=settings.preemption_margin_s,
        min_preemption_gain_s=settings.min_preemption_gain_s,
    )
    pacing = DecodePacing(
        blocking_s=settings.max_operator_s, max_delay_factor=settings.max_decode_delay
    )
    return lambda: FlowPrefillInstance(
        decider,
        device,
        tpot_slo_s=settings.tpot_slo_s,
        pacing=pacing,
        settings=LoopSettings(unchecked_s=settings.min_preemption_gain_s),
    )


def _with(**changes: object) -> MakeInstance:
    """Return this package's server with other settings."""
    return lambda worker, settings: flowprefill_instances(
        worker,
        replace(settings, **changes),  # type: ignore[arg-type]
    )


def _stepping(rules: StepRules) -> MakeInstance:
    def make(worker: Worker, _settings: ServerSettings) -> Callable[[], Instance]:
        predictor: PrefillCost = predictor_of(worker.cost)
        device = Device(
            worker.cost,
            worker.operators,
            worker.num_layers,
            granularity="off",
            num_kv_tokens=worker.num_kv_tokens,
            page_tokens=worker.page_tokens,
        )
        return lambda: StepInstance(rules, device, predictor)

    return make


_S_EDF = SEdf()

SYSTEMS: Mapping[str, System] = MappingProxyType(
    {
        system.name: system
        for system in (
            System("flowprefill", "this package with the given settings", flowprefill_instances),
            System(
                "half-layer",
                "S-EDF, suspended after attention and after the MLP",
                _with(policy="s-edf", granularity="half-layer"),
            ),
            System(
                "layer", "S-EDF, suspended at layers", _with(policy="s-edf", granularity="layer")
            ),
            System(
                "fcfs",
                "this package in order of arrival, without preemption",
                _with(policy="fcfs", granularity="off"),
            ),
            System(
                "distserve",
                "whole prompts in order of arrival, short ones together (DistServe's rule)",
                _stepping(StepRules("whole", 2048, Fcfs())),
            ),
            System(
                "sglang",
                "chunks of 8,192, one unfinished prompt, order of arrival (SGLang as it comes)",
                _stepping(StepRules("one-chunk", 8192, Fcfs())),
            ),
            System(
                "priority",
                "as sglang, the tightest class first",
                _stepping(StepRules("one-chunk", 8192, PriorityByClass())),
            ),
            System(
                "vllm-cp2k",
                "steps of 2,048 tokens, order of arrival (vLLM-like, Sarathi-like)",
                _stepping(StepRules("mixed", 2048, Fcfs())),
            ),
            System(
                "vllm-cp8k",
                "steps of 8,192 tokens, order of arrival",
                _stepping(StepRules("mixed", 8192, Fcfs())),
            ),
            System(
                "sarathi",
                "steps of 512 tokens, order of arrival (Sarathi-Serve's small budget)",
                _stepping(StepRules("mixed", 512, Fcfs())),
            ),
            System(
                "cp2k-s-edf",
                "steps of 2,048 tokens, S-EDF between steps",
                _stepping(StepRules("mixed", 2048, _S_EDF, is_order_fixed=False)),
            ),
            System(
                "cp8k-s-edf",
                "steps of 8,192 tokens, S-EDF between steps",
                _stepping(StepRules("mixed", 8192, _S_EDF, is_order_fixed=False)),
            ),
        )
    }
)
"""Systems by the name that a user writes."""


def find_system(name: str) -> System:
    """Return a system by name.

    Raises:
        PlanError: There is none of this name.
    """
    try:
        return SYSTEMS[name]
    except KeyError:
        raise PlanError(f"system {name!r}: choose one of {', '.join(SYSTEMS)}") from None
