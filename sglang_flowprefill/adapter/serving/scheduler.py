"""SGLang's scheduler process with FlowPrefill inside: a thin subclass, its seam with upstream.

Every override is here. Overrides do one of three things: run our loop in place of SGLang's, make
prefills in flight visible to SGLang's own bookkeeping (aborts, leak checks, admission, idleness),
or put down what a message brings until the loop picks it up. None of them calls the loop.
Zero-argument ``super()`` throughout: SGLang's hook registry rebinds the name ``Scheduler``,
also in this module, to this class.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sglang.srt.utils.common import DynamicGradMode

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.adapter.flags import config_of, slo_classes_of
from sglang_flowprefill.adapter.serving.build import Inputs, Serving, build_serving
from sglang_flowprefill.adapter.serving.engine import is_from_user
from sglang_flowprefill.adapter.serving.intake import Intake
from sglang_flowprefill.adapter.serving.messages import needs_quiet_engine
from sglang_flowprefill.adapter.serving.prefill_adder import (
    InflightView,
    MemoryClaims,
    prefill_adder_with,
)
from sglang_flowprefill.adapter.serving.requests import (
    attach_prefill_request,
    grow_objective,
    has_prefill_request,
    restart_prefill_request,
    update_cached_tokens,
)
from sglang_flowprefill.adapter.serving.started import SGLangPrefill
from sglang_flowprefill.adapter.unsupported import require_supported_scheduler
from sglang_flowprefill.api.slo import SloResolver
from sglang_flowprefill.executor import Ranks
from sglang_flowprefill.loop.inflight import InflightTable

_sglang = releases.scheduling()


class FlowPrefillScheduler(_sglang.Scheduler):
    """SGLang's scheduler with operator-level preemption and event-driven rounds.

    Attributes:
        inputs: Clock, event sources and decider; tests replace them on the class.
        memory_claims: What suspended prefills need of the memory, while a batch is formed.
        slo_resolver: The rules by which requests get their SLO.
    """

    inputs = Inputs()

    def __init__(self, server_args: Any, *args: Any) -> None:
        # Upstream's __init__ calls some of our overrides.
        self._intake = Intake()
        self._inflight: InflightTable[SGLangPrefill] = InflightTable()
        self._serving: Serving | None = None
        self.memory_claims = MemoryClaims(())
        super().__init__(server_args, *args)
        require_supported_scheduler(self, config_of(server_args).max_chunk_tokens)
        self.slo_resolver = SloResolver(slo_classes_of(server_args))
        group = self.tp_group
        self._ranks = Ranks(group.rank_in_group, group.world_size, group.cpu_group)
        self._serving = build_serving(self, self._ranks, self._intake, self._inflight, self.inputs)

    @property
    def serving(self) -> Serving:
        """What serves; complete once the scheduler is."""
        assert self._serving is not None
        return self._serving

    @DynamicGradMode()
    def event_loop_normal(self) -> None:
        """Serve until shutdown, driven by events.

        Raises:
            RankError: Another tensor-parallel rank has ended.
        """
        try:
            self.serving.loop.run()
        except RuntimeError:  # what a collective raises when its connection breaks
            self._ranks.require_peers_alive()
            raise

    def event_loop_overlap(self) -> None:
        """Never serve with the stock loop by accident: overlap is switched off at start-up."""
        self.event_loop_normal()

    def maybe_sleep_on_idle(self) -> None:
        """Return at once: the loop sleeps, on all that it listens to."""

    @property
    def _inflight_reqs(self) -> list[Any]:
        """SGLang's requests of all prefills in flight."""
        return [req for cursor in self._inflight for req in cursor.work.reqs]

    def _collect_inflight_batches(self) -> list[Any]:
        return [*super()._collect_inflight_batches(), InflightView(self._inflight_reqs)]

    def is_fully_idle(self, for_health_check: bool = False, **kwargs: Any) -> bool:
        """Not idle while a prefill is suspended: its memory is neither free nor leaked.

        Nor for a health check while the engine is paused: a request of its own would wait for the
        end of the pause, and the answer is that the loop runs.
        """
        is_quiet = not self._inflight and not (for_health_check and self._engine_paused)
        return bool(super().is_fully_idle(for_health_check, **kwargs)) and is_quiet

    def init_invariant_checker(self) -> None:
        """Let the leak checks count the rows of suspended prefills as owned."""
        super().init_invariant_checker()
        self.invariant_checker.get_last_batch = lambda: InflightView(self._inflight_reqs)

    def init_load_inquirer(self) -> None:
        """Let load reports (``/v1/loads``, routers) count suspended requests as running."""
        super().init_load_inquirer()
        self.load_inquirer = replace(
            self.load_inquirer,
            get_running_batch=lambda: InflightView(
                [*self.running_batch.reqs, *self._inflight_reqs]
            ),
        )

    def get_num_allocatable_reqs(self, running_bs: int, *args: Any, **kwargs: Any) -> int:
        """Count suspended requests as running."""
        num_inflight = running_bs + len(self._inflight_reqs)
        return int(super().get_num_allocatable_reqs(num_inflight, *args, **kwargs))

    def get_prefill_adder_class(self) -> Any:
        """Reserve memory for what suspended requests, other than the admitted one, still need."""
        return prefill_adder_with(self.memory_claims)

    def get_internal_state(self, recv_req: Any) -> Any:
        """Add our statistics to what ``/server_info`` shows."""
        output = super().get_internal_state(recv_req)
        if self._serving is not None:
            output.internal_state["flowprefill"] = self.describe()
        return output

    def describe(self) -> dict[str, Any]:
        """Return the statistics as plain values."""
        serving = self.serving
        attainment = serving.telemetry.statistics.statistics().attainment
        return {
            "policy": config_of(self.server_args).policy,
            **serving.telemetry.describe(),
            "weighted_attainment": self.slo_resolver.classes.weighted_attainment(attainment),
            "prediction": serving.decider.describe(),
            "num_unfinished_prefills": len(self._inflight),
            "is_idle": self.is_fully_idle(),
            "profile": str(serving.profile_path),
        }

    def process_input_requests(self, recv_reqs: Sequence[Any]) -> None:
        """Dispatch messages; those that need a quiet engine may wait for one in ``Intake``."""
        messages = self._intake.pass_on(recv_reqs, is_quiet=not self._inflight)
        super().process_input_requests(messages)
        if any(needs_quiet_engine(message) for message in messages):
            self.serving.runner.on_weights_changed()  # which such a message may have written

    def _add_request_to_queue(self, req: Any, is_retracted: bool = False) -> None:
        """Queue a request; a new one is put down for the loop, which judges it.

        One that starts over was judged before. A health check is not, nor a warm-up of the prefix
        cache: their senders do not look for an abort, so a refused one would hang.
        """
        is_known = has_prefill_request(req)
        if is_known:
            restart_prefill_request(req, self.inputs.clock())
        else:
            attach_prefill_request(req, self.slo_resolver, self.inputs.clock(), time.time())
        req.init_next_round_input(self.tree_cache)  # prefix match, as before each admission
        update_cached_tokens(req)
        if not is_known and self._serving is not None:
            grow_objective(req, self._serving.decider.present)
        super()._add_request_to_queue(req, is_retracted=is_retracted)
        if not is_known and is_from_user(req):
            self._intake.put_down(req)
