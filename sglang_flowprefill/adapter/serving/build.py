"""What serves inside one scheduler process, put together: engine, loop, policy and observers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sglang.srt.utils.common import DynamicGradMode

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.adapter.attributes import MODEL_RUNNER, SCHEDULER, require_attributes
from sglang_flowprefill.adapter.flags import config_of, slo_classes_of, state_address_of
from sglang_flowprefill.adapter.model.doorbell import doorbell_products
from sglang_flowprefill.adapter.model.model_runner import PreemptibleModelRunner
from sglang_flowprefill.adapter.serving.engine import SGLangEngine
from sglang_flowprefill.adapter.serving.intake import Intake, MessageSource
from sglang_flowprefill.adapter.serving.messages import kinds_of
from sglang_flowprefill.adapter.serving.profile import (
    PrefillLimits,
    Profile,
    prefill_profile,
    profile_key,
)
from sglang_flowprefill.adapter.serving.request_traces import RequestTraces
from sglang_flowprefill.adapter.serving.requests import scheduler_clock_s
from sglang_flowprefill.adapter.serving.started import SGLangPrefill
from sglang_flowprefill.adapter.serving.warm_up import WarmUp
from sglang_flowprefill.api.slo import SloClasses
from sglang_flowprefill.config import FlowPrefillConfig
from sglang_flowprefill.core import (
    AdmissionControl,
    CalibratedDecider,
    Calibration,
    DecodePacing,
    DegradedLast,
    Distortion,
    PolicyOptions,
    PrefillDecider,
    make_policy,
)
from sglang_flowprefill.core.admission import AdmissionMode
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.executor import Ranks
from sglang_flowprefill.loop.admission import Admission
from sglang_flowprefill.loop.decode_clock import DecodeClock
from sglang_flowprefill.loop.event_loop import Decider, EventLoop, LoopSettings
from sglang_flowprefill.loop.event_sources import EventSources, GrammarSource, MemorySource
from sglang_flowprefill.loop.inflight import InflightTable
from sglang_flowprefill.loop.observer import Observer
from sglang_flowprefill.loop.stress import StressDecider
from sglang_flowprefill.observe.decision_log import DecisionLog
from sglang_flowprefill.observe.live_state import LiveState
from sglang_flowprefill.observe.metrics import Metrics
from sglang_flowprefill.observe.state_socket import StateServer, address_of_rank
from sglang_flowprefill.observe.telemetry import Telemetry
from sglang_flowprefill.observe.timeline import Timeline, TimelineObserver

logger = logging.getLogger(__name__)

_WARM_UP_TOKENS = 16
_sglang = releases.scheduling()


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a server takes from the outside world, and what tests put something else in place of.

    Attributes:
        clock: Monotonic time in seconds.
        sources: Makes the event sources.
        decider: Wraps what decides.
    """

    clock: Callable[[], float] = scheduler_clock_s
    sources: Callable[..., EventSources] = EventSources
    decider: Callable[[CalibratedDecider], Decider] = lambda decider: decider


@dataclass(frozen=True, slots=True)
class Serving:
    """The parts of one scheduler process that somebody asks for later.

    Attributes:
        loop: The event loop.
        runner: Makes prefill forwards suspendable.
        decider: The policy with its predictor.
        telemetry: What is told to the outside.
        profile_path: File of the start-up profile.
        state_server: Answers for live state; None on followers.
    """

    loop: EventLoop[SGLangPrefill]
    runner: PreemptibleModelRunner
    decider: CalibratedDecider
    telemetry: Telemetry
    profile_path: Path
    state_server: StateServer | None


def build_serving(
    scheduler: Any,
    ranks: Ranks,
    intake: Intake,
    inflight: InflightTable[SGLangPrefill],
    inputs: Inputs,
) -> Serving:
    """Put together what serves.

    Args:
        scheduler: SGLang's scheduler, complete but for us.
        ranks: The tensor-parallel ranks.
        intake: Where messages put down what the loop picks up.
        inflight: The table of prefills in flight, which the scheduler's overrides read.
        inputs: The outside world.

    Raises:
        UnsupportedSGLangError: The model cannot be made preemptible, or SGLang lacks an attribute.
        ConfigError: A setting does not fit the model, or a file cannot be written.
        RankError: Ranks differ.
    """
    require_attributes(SCHEDULER, scheduler)
    require_attributes(MODEL_RUNNER, scheduler.tp_worker.model_runner)
    config = config_of(scheduler.server_args)
    given = _Given(scheduler, ranks, config, slo_classes_of(scheduler.server_args), inputs.clock)
    events = _Events(inputs)
    runner = _runner(given, events.has_event)
    engine = SGLangEngine(
        scheduler,
        runner,
        intake,
        inflight,
        inputs.clock,
        max_chunk_tokens=None if config.granularity == "off" else config.max_chunk_tokens,
        is_alone=ranks.size == 1,
        checks_cursors=config.check_cursors,
    )
    with DynamicGradMode():
        profile = _profile(given, engine, runner)
    runner.limit_operators(
        profile.operator_seconds_per_row, profile.cost, config.max_operator_ms / 1000.0
    )
    decider = CalibratedDecider(
        _prefill_decider(given, profile),
        Calibration.from_profile(profile.cost),
        Distortion(config.prediction_factor, config.prediction_noise),
    )
    telemetry = _telemetry(given, runner, inflight)
    wrapped = inputs.decider(decider)
    loop = EventLoop(
        engine,
        events.connect(given, engine),
        StressDecider(wrapped) if config.stress else wrapped,
        _decode_clock(config),
        inputs.clock,
        inflight=inflight,
        admission=_admission(given),
        observers=telemetry.observers,
        agreement=ranks,
        settings=_loop_settings(given),
    )
    _log_start(given, runner)
    state_server = _state_server(given, telemetry)
    return Serving(loop, runner, decider, telemetry, profile.path, state_server)


@dataclass(frozen=True, slots=True)
class _Given:
    """What every part is made from."""

    scheduler: Any
    ranks: Ranks
    config: FlowPrefillConfig
    classes: SloClasses
    clock: Callable[[], float]


class _Events:
    """The event sources, which boundaries refer to before there is an engine to listen to."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._sources: EventSources | None = None

    def has_event(self) -> bool:
        """Tell, at a boundary, whether the scheduler should look."""
        assert self._sources is not None, "nothing is suspended before the loop runs"
        return self._sources.has_event()

    def connect(self, given: _Given, engine: SGLangEngine) -> EventSources:
        """Listen to the scheduler's sockets, its grammars and its memory."""
        scheduler = given.scheduler
        channels = scheduler.ipc_channels
        messages = MessageSource(
            [channels.recv_from_tokenizer, channels.recv_from_rpc] if given.ranks.is_leader else [],
            lambda: [kind for m in scheduler.ingest_requests() for kind in kinds_of(m)],
        )
        self._sources = self._inputs.sources(
            [messages, GrammarSource(engine.has_waiting_grammars, engine.admit_ready_grammars)],
            MemorySource(engine.room),
            messages.wait,
            self._inputs.clock,
        )
        return self._sources


def _runner(given: _Given, has_event: Callable[[], bool]) -> PreemptibleModelRunner:
    scheduler, ranks, config = given.scheduler, given.ranks, given.config
    device = str(scheduler.device)
    return PreemptibleModelRunner(
        scheduler.tp_worker.model_runner,
        ranks.agreed_yield(has_event),
        config.granularity,
        config.run_ahead,
        asks_once=ranks.size > 1,
        make_product=doorbell_products(device, ranks.size) if config.doorbell else None,
    )


def _profile(given: _Given, engine: SGLangEngine, runner: PreemptibleModelRunner) -> Profile:
    """Warm the model up, check that its boundaries fire, and fetch or measure its costs."""
    scheduler, ranks, config = given.scheduler, given.ranks, given.config
    key = profile_key(scheduler.tp_worker.model_runner, engine.max_chunk_tokens, ranks.size)
    shape = (runner.num_boundaries, key["kernels"])
    ranks.require_equal("number of boundaries and kernels", shape)
    warm_up = WarmUp(scheduler, engine, runner)
    warm_up.check_boundaries(_WARM_UP_TOKENS)
    max_tokens = min(scheduler.max_req_input_len, scheduler.max_total_num_tokens // 2)
    return prefill_profile(
        key,
        PrefillLimits(max_tokens, scheduler.max_running_requests),
        warm_up,
        config.profile_cache_dir,
        ranks,
        measures_again=config.profile_again,
    )


def _prefill_decider(given: _Given, profile: Profile) -> PrefillDecider:
    config = given.config
    policy = make_policy(config.policy, PolicyOptions(config.starvation_factor))
    if "degrade" in given.classes.admission_modes(cast("AdmissionMode", config.admission)):
        policy = DegradedLast(policy)
    max_batch_tokens = config.max_batch_tokens or profile.saturation_tokens
    return PrefillDecider(
        policy=policy,
        cost=profile.cost,
        limits=BatchLimits(min(max_batch_tokens, config.max_chunk_tokens)),
        max_suspended=config.max_suspended,
        max_suspended_bytes=config.suspended_memory_mb * 2**20,
        max_restarts=config.max_restarts,
        max_preemptions=config.max_preemptions,
        preemption_margin_s=config.preemption_margin_ms / 1000.0,
        min_preemption_gain_s=config.min_preemption_gain_ms / 1000.0,
    )


def _admission(given: _Given) -> Admission | None:
    """Return what judges new requests; None if every one is admitted."""
    config, classes = given.config, given.classes
    mode = cast("AdmissionMode", config.admission)
    if classes.admission_modes(mode) == {"off"} and config.max_waiting is None:
        return None
    return Admission(AdmissionControl(mode, config.max_waiting), classes.admission_mode)


def _decode_clock(config: FlowPrefillConfig) -> DecodeClock:
    pacing = DecodePacing(
        blocking_s=config.max_operator_ms / 1000.0, max_delay_factor=config.max_decode_delay
    )
    return DecodeClock(pacing, config.tpot_slo_ms / 1000.0)


def _loop_settings(given: _Given) -> LoopSettings:
    config = given.config
    # Followers would judge by a prediction of their own; all of them ask everywhere.
    checks_all = config.stress or given.ranks.size > 1
    return LoopSettings(
        unchecked_s=0.0 if checks_all else config.min_preemption_gain_ms / 1000.0,
        checks_slices=config.check_cursors,
    )


def _telemetry(
    given: _Given, runner: PreemptibleModelRunner, inflight: InflightTable[SGLangPrefill]
) -> Telemetry:
    config, is_leader, default = given.config, given.ranks.is_leader, given.classes.default
    ttft_slo_ms = {default.class_name: default.ttft_s * 1000.0, **given.classes.ttft_slo_ms}
    live = LiveState(config.policy, config.granularity, ttft_slo_ms, given.clock, inflight)
    log = DecisionLog(config.log_level, config.log_format, is_silent=not is_leader)
    others: list[Observer] = [log, RequestTraces()]
    if _sglang.is_metrics_enabled(given.scheduler) and is_leader:
        tiles = lambda: (runner.num_tiles, runner.num_tile_tokens)  # noqa: E731
        others.append(Metrics([*ttft_slo_ms], inflight.suspended, tiles))
    if config.trace and is_leader:
        timeline = Timeline(Path(config.trace), given.clock)
        runner.checkpoint.observer = timeline.on_boundary
        others.append(TimelineObserver(timeline))
    return Telemetry(live, others)


def _state_server(given: _Given, telemetry: Telemetry) -> StateServer | None:
    if not given.ranks.is_leader:
        return None
    rank = _sglang.data_parallel_rank(given.scheduler)
    address = address_of_rank(state_address_of(given.scheduler.server_args), rank)
    return StateServer(address, telemetry.live_state)


def _log_start(given: _Given, runner: PreemptibleModelRunner) -> None:
    logger.info(
        "FlowPrefill is active: policy %s, granularity %s, %d boundaries in %d layers, %s",
        given.config.policy,
        given.config.granularity,
        runner.num_boundaries,
        runner.num_layers,
        type(given.scheduler.tp_worker.model_runner.attn_backend).__name__,
    )
    _log_room(given, runner)


def _log_room(given: _Given, runner: PreemptibleModelRunner) -> None:
    """Say how many prefills may stand suspended, and warn if not even two long ones."""
    config, num_kv_tokens = given.config, int(given.scheduler.max_total_num_tokens)
    chunk = min(config.max_chunk_tokens, num_kv_tokens)
    chunk_mb = chunk * runner.activation_bytes / 2**20
    num_chunks = int(config.suspended_memory_mb / chunk_mb)
    logger.log(
        logging.INFO if num_chunks else logging.WARNING,
        "FlowPrefill: up to %d prefills may stand suspended, their KV in a pool of %d tokens, "
        "activations in %.0f MB (--flowprefill-suspended-memory-mb): %s of %d tokens, "
        "%.0f MB each",
        config.max_suspended,
        num_kv_tokens,
        config.suspended_memory_mb,
        f"room for {num_chunks} chunks" if num_chunks else "too little for one chunk",
        chunk,
        chunk_mb,
    )
