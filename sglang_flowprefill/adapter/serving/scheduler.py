"""SGLang's scheduler process with FlowPrefill inside: a thin subclass, its seam with upstream.

Every override is here; what they add up to is in ``event_loop.py``. Overrides do one of three
things: replace the loop, make suspended prefills visible to SGLang's own bookkeeping (aborts,
leak checks, admission, idleness), or carry out one primitive of the loop with upstream's parts.
Zero-argument ``super()`` throughout: SGLang's hook registry rebinds the name ``Scheduler``,
also in this module, to this class.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang.srt.disaggregation.utils import prepare_abort
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.observability.req_time_stats import set_schedule_time_batch
from sglang.srt.utils.common import DynamicGradMode

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.adapter.flags import config_of, slo_classes_of, state_address_of
from sglang_flowprefill.adapter.model.doorbell import doorbell_products
from sglang_flowprefill.adapter.model.model_runner import PreemptibleModelRunner
from sglang_flowprefill.adapter.serving.messages import kinds_of, needs_quiet_engine
from sglang_flowprefill.adapter.serving.prefill_adder import (
    Admission,
    InflightView,
    prefill_adder_with,
)
from sglang_flowprefill.adapter.serving.profile import (
    PrefillLimits,
    Profile,
    prefill_profile,
    profile_key,
)
from sglang_flowprefill.adapter.serving.requests import (
    attach_prefill_request,
    degrade_prefill_request,
    has_prefill_request,
    prefill_request,
    restart_prefill_request,
    scheduler_clock_s,
    update_cached_tokens,
)
from sglang_flowprefill.adapter.serving.warm_up import WarmUp
from sglang_flowprefill.adapter.unsupported import require_supported_scheduler
from sglang_flowprefill.api.overload import reject
from sglang_flowprefill.api.slo import SloClasses, SloResolver
from sglang_flowprefill.config import FlowPrefillConfig
from sglang_flowprefill.core import (
    CalibratedDecider,
    Calibration,
    DecodePacing,
    Degrade,
    DegradedLast,
    Distortion,
    PolicyOptions,
    PrefillDecider,
    Reject,
    make_policy,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.executor import Ranks
from sglang_flowprefill.loop.admission import admission_modes, admission_of
from sglang_flowprefill.loop.decode_clock import DecodeClock
from sglang_flowprefill.loop.event_loop import EventLoop
from sglang_flowprefill.loop.event_sources import (
    EventSources,
    GrammarSource,
    MemorySource,
    MessageSource,
    StressEventSources,
)
from sglang_flowprefill.loop.stress import StressEventLoop
from sglang_flowprefill.observe.decision_log import DecisionLog
from sglang_flowprefill.observe.live_state import LiveState
from sglang_flowprefill.observe.metrics import Metrics
from sglang_flowprefill.observe.state_socket import StateServer, address_of_rank
from sglang_flowprefill.observe.telemetry import Telemetry
from sglang_flowprefill.observe.timeline import Timeline

logger = logging.getLogger(__name__)

_WARM_UP_TOKENS = 16
_sglang = releases.scheduling()


class FlowPrefillScheduler(_sglang.Scheduler):
    """SGLang's scheduler with operator-level preemption and event-driven rounds."""

    def __init__(self, server_args: Any, *args: Any) -> None:
        self._loop: EventLoop | None = None  # upstream's __init__ calls some of our overrides
        self._admission = Admission(())
        super().__init__(server_args, *args)
        config = config_of(server_args)
        require_supported_scheduler(self)
        self.max_chunk_tokens = None if config.granularity == "off" else config.max_chunk_tokens
        self.slo_resolver = SloResolver(slo_classes_of(server_args))
        group = self.tp_group
        ranks = self._ranks = Ranks(group.rank_in_group, group.world_size, group.cpu_group)
        events = self._event_sources(StressEventSources if config.stress else EventSources)
        runner = self._runner = PreemptibleModelRunner(
            self.tp_worker.model_runner,
            ranks.agreed_yield(events.has_event),
            config.granularity,
            config.run_ahead,
            asks_once=ranks.size > 1,
            make_product=doorbell_products(str(self.device), ranks.size)
            if config.doorbell
            else None,
        )
        with DynamicGradMode():
            profile = self._profile(runner, config)
        self._profile_path = profile.path
        runner.limit_operators(
            profile.operator_seconds_per_row, profile.cost, config.max_operator_ms / 1000.0
        )
        traces = config.trace and ranks.is_leader
        timeline = Timeline(Path(config.trace), scheduler_clock_s) if traces else None
        if timeline is not None:
            runner.checkpoint.observer = timeline.on_boundary
        classes = self.slo_resolver.classes
        default = classes.default
        ttft_slo_ms = {default.class_name: default.ttft_s * 1000.0, **classes.ttft_slo_ms}
        live = LiveState(config.policy, config.granularity, ttft_slo_ms, scheduler_clock_s)
        metrics = Metrics(
            is_enabled=_sglang.is_metrics_enabled(self) and ranks.is_leader,
            class_names=[*ttft_slo_ms],
        )
        log = DecisionLog(config.log_level, config.log_format, is_silent=not ranks.is_leader)
        # Followers would judge by a prediction of their own; all of them ask everywhere.
        checks_all = config.stress or ranks.size > 1
        self._loop = (StressEventLoop if config.stress else EventLoop)(
            engine=self,
            runner=runner,
            events=events,
            policy_name=config.policy,
            scheduler=CalibratedDecider(
                _policy(config, classes, profile),
                Calibration.from_profile(profile.cost),
                Distortion(config.prediction_factor, config.prediction_noise),
            ),
            admission=admission_of(config, classes),
            telemetry=Telemetry(metrics, live, log, timeline),
            ranks=ranks,
            memory=runner.memory,
            decode_clock=DecodeClock(
                DecodePacing(
                    blocking_s=config.max_operator_ms / 1000.0,
                    max_delay_factor=config.max_decode_delay,
                ),
                config.tpot_slo_ms / 1000.0,
            ),
            unchecked_s=0.0 if checks_all else config.min_preemption_gain_ms / 1000.0,
            checks_cursors=config.check_cursors,
        )
        if ranks.is_leader:
            rank = _sglang.data_parallel_rank(self)
            address = address_of_rank(state_address_of(server_args), rank)
            self._state_server = StateServer(address, self._loop.live_state)
        logger.info(
            "FlowPrefill is active: policy %s, granularity %s, %d boundaries in %d layers, %s",
            config.policy,
            config.granularity,
            runner.num_boundaries,
            runner.num_layers,
            type(self.tp_worker.model_runner.attn_backend).__name__,
        )

    def _event_sources(self, kind: type[EventSources]) -> EventSources:
        channels = self.ipc_channels
        is_leader = self._ranks.is_leader
        return kind(
            MessageSource(
                [channels.recv_from_tokenizer, channels.recv_from_rpc] if is_leader else [],
                lambda: [kind for message in self.ingest_requests() for kind in kinds_of(message)],
            ),
            GrammarSource(self.grammar_manager.has_waiting_grammars, self._admit_ready_grammars),
            MemorySource(self._room),
            scheduler_clock_s,
        )

    def _profile(self, runner: PreemptibleModelRunner, config: FlowPrefillConfig) -> Profile:
        """Warm the model up, check that its boundaries fire, and fetch or measure its costs."""
        key = profile_key(self.tp_worker.model_runner, self.max_chunk_tokens, self._ranks.size)
        shape = (runner.num_boundaries, key["kernels"])
        self._ranks.require_equal("number of boundaries and kernels", shape)
        warm_up = WarmUp(self, runner)
        warm_up.check_boundaries(_WARM_UP_TOKENS)
        max_tokens = min(self.max_req_input_len, self.max_total_num_tokens // 2)
        return prefill_profile(
            key,
            PrefillLimits(max_tokens, self.max_running_requests),
            warm_up,
            config.profile_cache_dir,
            self._ranks,
            measures_again=config.profile_again,
        )

    # ---- the loop ----

    @DynamicGradMode()
    def event_loop_normal(self) -> None:
        """Serve until shutdown, driven by events.

        Raises:
            RankError: Another tensor-parallel rank has ended.
        """
        assert self._loop is not None
        try:
            self._loop.run()
        except RuntimeError:  # what a collective raises when its connection breaks
            self._ranks.require_peers_alive()
            raise

    def event_loop_overlap(self) -> None:
        """Never serve with the stock loop by accident: overlap is switched off at start-up."""
        self.event_loop_normal()

    def maybe_sleep_on_idle(self) -> None:
        """Sleep until a message comes (called by ``on_idle`` when nothing is left to do)."""
        if self._loop is not None:
            self._loop.sleep_idle()

    # ---- suspended prefills, made visible to upstream ----

    @property
    def _suspended_reqs(self) -> list[Any]:
        return [] if self._loop is None else self._loop.suspended_reqs

    def _collect_inflight_batches(self) -> list[Any]:
        return [*super()._collect_inflight_batches(), InflightView(self._suspended_reqs)]

    def is_fully_idle(self, *args: Any, **kwargs: Any) -> bool:
        """Not idle while a prefill is suspended: its memory is neither free nor leaked."""
        return bool(super().is_fully_idle(*args, **kwargs)) and not self._suspended_reqs

    def init_invariant_checker(self) -> None:
        """Let the leak checks count the rows of suspended prefills as owned."""
        super().init_invariant_checker()
        self.invariant_checker.get_last_batch = lambda: InflightView(self._suspended_reqs)

    def init_load_inquirer(self) -> None:
        """Let load reports (``/v1/loads``, routers) count suspended requests as running."""
        super().init_load_inquirer()
        self.load_inquirer = replace(
            self.load_inquirer,
            get_running_batch=lambda: InflightView(
                [*self.running_batch.reqs, *self._suspended_reqs]
            ),
        )

    def get_num_allocatable_reqs(self, running_bs: int, *args: Any, **kwargs: Any) -> int:
        """Count suspended requests as running."""
        num_inflight = running_bs + len(self._suspended_reqs)
        return int(super().get_num_allocatable_reqs(num_inflight, *args, **kwargs))

    def get_prefill_adder_class(self) -> Any:
        """Reserve memory for what suspended requests, other than the admitted one, still need."""
        return prefill_adder_with(self._admission)

    def update_running_batch(self, batch: Any) -> Any:
        """Before decode retracts its own requests, restart suspended prefills for their memory."""
        while not batch.check_decode_mem() and self._loop and self._loop.drop_for_decode():
            pass
        return super().update_running_batch(batch)

    def get_internal_state(self, recv_req: Any) -> Any:
        """Add our statistics to what ``/server_info`` shows."""
        output = super().get_internal_state(recv_req)
        if self._loop is not None:
            output.internal_state["flowprefill"] = {
                **self._loop.describe(),
                "profile": str(self._profile_path),
            }
        return output

    # ---- intake ----

    def _add_request_to_queue(self, req: Any, is_retracted: bool = False) -> None:
        """Queue a request, unless admission refuses it.

        Requests that start over were admitted before. A refused health check would hang: its
        sender does not look for an abort.
        """
        is_known = has_prefill_request(req)
        if is_known:
            restart_prefill_request(req, scheduler_clock_s())
        else:
            attach_prefill_request(req, self.slo_resolver, scheduler_clock_s(), time.time())
        req.init_next_round_input(self.tree_cache)  # prefix match, as before each admission
        update_cached_tokens(req)
        if not (is_known or _sglang.is_health_check_generate_req(req) or self._admits(req)):
            return
        super()._add_request_to_queue(req, is_retracted=is_retracted)

    def _admits(self, req: Any) -> bool:
        """Ask admission about a new request; answer it at once if the verdict is no."""
        assert self._loop is not None
        verdict = self._loop.admission_verdict(prefill_request(req))
        if isinstance(verdict, Degrade):
            degrade_prefill_request(req)
        if not isinstance(verdict, Reject):
            return True
        slo = prefill_request(req).slo
        rejection = reject(verdict.reason, slo, verdict.retry_after_s)
        abort = _sglang.make_abort_req(req, finished_reason=rejection.finish_reason)
        req.time_stats.trace_ctx.abort(abort_info={"reason": rejection.message})
        self.send_abort_output(abort, req)
        self._release_aborted_request(req)
        return False

    def process_input_requests(self, recv_reqs: Sequence[Any]) -> None:
        """Dispatch messages; those that need a quiet engine get one, and may write weights."""
        start = 0
        for index, message in enumerate(recv_reqs):
            if self._suspended_reqs and needs_quiet_engine(message):
                super().process_input_requests(recv_reqs[start:index])
                start = index
                assert self._loop is not None
                self._loop.drain()
        super().process_input_requests(recv_reqs[start:])
        if any(needs_quiet_engine(message) for message in recv_reqs):
            self._runner.on_weights_changed()

    def abort_request(self, recv_req: Any) -> None:
        """Also reach suspended prefills; one with no member left is cancelled at once."""
        super().abort_request(recv_req)
        if self._loop is not None:
            self._loop.cancel_aborted()

    # ---- primitives of the loop ----

    def _admit_ready_grammars(self) -> int:
        """Move requests whose grammar is compiled to the waiting queue; return how many."""
        if not self.grammar_manager.has_waiting_grammars():
            return 0
        ready = self.grammar_manager.get_ready_grammar_requests()
        for req in ready:
            self._add_request_to_queue(req)
        return len(ready)

    def form_prefill_batch(self, reqs: Sequence[Any]) -> Any:
        """Admit these waiting requests as SGLang would if the queue held no others.

        Returns:
            A ``ScheduleBatch`` with memory allocated, or None if not even the first fits. Its
            ``chunked_req`` is the request that needs more forward passes after this one.
        """
        chosen = {id(req) for req in reqs}
        others = [req for req in self.waiting_queue if id(req) not in chosen]
        self.waiting_queue = list(reqs)
        batch = self._admit()
        self.waiting_queue = others + self.waiting_queue
        if batch is not None:
            set_schedule_time_batch(batch)
            for req in batch.reqs:
                update_cached_tokens(req)
        return batch

    def form_next_chunk(self, req: Any) -> Any:
        """Allocate memory for the next forward pass of a partly prefilled request.

        Returns:
            A ``ScheduleBatch`` as from ``form_prefill_batch``, or None if there is no memory.
        """
        others, self.waiting_queue = self.waiting_queue, []
        self.chunked_req = req
        batch = self._admit()
        self.waiting_queue = others + self.waiting_queue
        return batch

    def _admit(self) -> Any:
        """Let upstream form a batch from ``waiting_queue`` and ``chunked_req``.

        SGLang tracks one partly prefilled request at a time, in attributes that are set here for
        the length of one call: between calls there is none, and any number of them are suspended.
        """
        self.running_batch.batch_is_full = False
        self.chunked_prefill_size = self.max_chunk_tokens
        others = [req for req in self._suspended_reqs if req is not self.chunked_req]
        self._admission = Admission(others)
        plan = self.get_new_batch_prefill(self.running_batch)
        self.chunked_prefill_size = self.chunked_req = None
        self.running_batch = plan.running_batch
        return plan.batch_to_run

    def _room(self) -> tuple[float, ...]:
        """Return what SGLang's admission may give out; every number grows as memory comes free.

        KV slots (those of evictable cache entries too), request rows, and the share of their
        longest possible output that it does not reserve for running requests.
        """
        return (
            self.token_to_kv_pool_allocator.available_size() + self.tree_cache.evictable_size(),
            self.req_to_token_pool.available_size(),
            1.0 - self.new_token_ratio_tracker.current,
        )

    @property
    def num_missing_tokens(self) -> int:
        """KV slots that the request lacks which the last admission turned away."""
        return self._admission.num_missing_tokens

    def publish_chunk(self, req: Any) -> None:
        """Let the prefix cache have what the forward passes of a request computed so far."""
        self.stash_chunked_request(req)
        update_cached_tokens(req)

    def run_forward(self, batch: Any) -> Any:
        """Run one forward pass and sample. Inside a cursor this may be suspended.

        The undecorated ``run_batch``: its stage timer assumes that stages nest.
        """
        return super().run_batch.__wrapped__(self, batch)

    def join_decode(self, batch: Any, rest: Any) -> None:
        """Let a prefilled batch decode with the running requests.

        Args:
            batch: Its finished requests are dropped.
            rest: The one that is not through its prefill, if any; it is left out.
        """
        batch.filter_batch(rest)
        if batch.is_empty():
            return
        if self.running_batch.is_empty():
            self.running_batch = batch
        else:
            self.running_batch.merge_batch(batch)

    @property
    def has_decode_work(self) -> bool:
        """True if running requests want a next token."""
        return not self.running_batch.is_empty() and not self.running_batch.is_prefill_only

    def run_decode_step(self) -> list[Any]:
        """Run one decode step of all running requests; return those that got a token."""
        self.running_batch.filter_batch()
        batch = self.running_batch
        if not batch.is_empty():
            batch = self.update_running_batch(batch)
        if batch is None or batch.is_empty():
            return []
        self.cur_batch_for_debug = batch
        self.process_batch_result(batch, self.run_batch(batch))
        stepped = list(batch.reqs)
        batch.filter_batch()
        return stepped

    def release_aborted(self, req: Any) -> None:
        """Give back everything of an aborted request whose prefill was cancelled; answer it."""
        reason = req.to_finish
        prepare_abort(req, reason.message, reason.status_code)
        req.time_stats.trace_ctx.abort(abort_info={"reason": reason.message})
        req.to_finish = None
        self._release_aborted_request(req)
        _sglang.release_uncached(req, self.tree_cache)
        told = reason.to_json() if reason.status_code is not None else None
        self.send_abort_output(_sglang.make_abort_req(req, finished_reason=told), req)

    def requeue(self, req: Any) -> None:
        """Give back the memory of a request whose prefill was cancelled; it starts over later."""
        _sglang.release_uncached(req, self.tree_cache)
        req.reset_for_retract()
        self._add_request_to_queue(req, is_retracted=True)

    @staticmethod
    def is_complete(req: Any) -> bool:
        """Tell whether a user's request has got its last token."""
        return req.finished() and not _sglang.is_health_check_generate_req(req)

    @staticmethod
    def counts_for_attainment(req: Any) -> bool:
        """Tell whether a first token is a user's: not a health check, not an abort."""
        is_aborted = isinstance(req.finished_reason, FINISH_ABORT)
        return not is_aborted and not _sglang.is_health_check_generate_req(req)


def _policy(config: FlowPrefillConfig, classes: SloClasses, profile: Profile) -> PrefillDecider:
    policy = make_policy(config.policy, PolicyOptions(config.starvation_factor))
    if "degrade" in admission_modes(config, classes):
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
