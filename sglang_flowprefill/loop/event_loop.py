"""The event-driven loop of the scheduler process.

    collect events -> (if any) one scheduling round -> carry the decision out -> collect events

Carrying out a decision means running a prefill until it ends or an event interrupts it, running
one decode step, or sleeping. Between two passes every started prefill is suspended, and all of
them are in ``cursors``: nothing else in the process remembers them.

With tensor parallelism every rank runs this loop and makes the same passes. What depends on a
clock or a socket, which is every decision, goes through ``Ranks.agree``; a batch keeps its id on
all ranks. Followers count events and time too, and nobody reads it.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sglang.srt.environ import envs

from sglang_flowprefill.adapter.model.model_runner import MemoryPerToken, PreemptibleModelRunner
from sglang_flowprefill.adapter.serving.requests import prefill_request, scheduler_clock_s
from sglang_flowprefill.core import (
    AdmissionDecision,
    Admit,
    BlockedRequest,
    CalibratedDecider,
    Decision,
    DecodeView,
    DropBatches,
    Event,
    EventKind,
    Observation,
    PrefillBatch,
    PrefillRequest,
    Release,
    ResumeBatch,
    RoundView,
    RunDecode,
    StartBatch,
    Wait,
)
from sglang_flowprefill.core.decision import DECODE_NEEDS_MEMORY, QUIET_WANTED
from sglang_flowprefill.executor import Cursor, Ranks
from sglang_flowprefill.loop.admission import AdmissionByClass
from sglang_flowprefill.loop.decode_clock import DecodeClock
from sglang_flowprefill.loop.event_sources import EventSources
from sglang_flowprefill.loop.inflight import OperatorCursor
from sglang_flowprefill.observe.telemetry import Telemetry

if TYPE_CHECKING:
    from sglang_flowprefill.adapter.serving.scheduler import FlowPrefillScheduler

logger = logging.getLogger(__name__)

_IDLE_WAIT_S = 1.0  # an idle server still answers SGLang's periodic housekeeping
_BLOCKED_WAIT_S = 0.02  # work waits for memory, or for a grammar


class EventLoop:
    """Runs prefills and decode steps of one scheduler process.

    Args:
        engine: The scheduler; this loop uses its primitives only.
        runner: Makes prefill forwards suspendable.
        events: What causes rounds, and interrupts prefills.
        policy_name: What the user calls the policy.
        admission: Judges new requests; None admits every one.
        scheduler: What decides, and learns from every prefill that ends.
        telemetry: Told what happens.
        ranks: The ranks of the server; this one decides if it leads.
        memory: What a token of an unfinished prefill holds.
        decode_clock: Tells when a decode step is due.
        unchecked_s: A prefill predicted to take no longer passes its boundaries without looking
            for events: it would not be preempted anyway.
        checks_cursors: Verify suspended prefills at every resume.
        clock: Seconds, monotonic.

    Attributes:
        cursors: Every started and unfinished prefill, by batch id.
    """

    def __init__(
        self,
        *,
        engine: "FlowPrefillScheduler",
        runner: PreemptibleModelRunner,
        events: EventSources,
        policy_name: str,
        scheduler: CalibratedDecider,
        admission: AdmissionByClass | None,
        telemetry: Telemetry,
        ranks: Ranks,
        memory: MemoryPerToken,
        decode_clock: DecodeClock,
        unchecked_s: float,
        checks_cursors: bool,
        clock: Callable[[], float] = scheduler_clock_s,
    ) -> None:
        self._engine = engine
        self._runner = runner
        self._events = events
        self._policy_name = policy_name
        self._scheduler = scheduler
        self._admission = admission
        self._telemetry = telemetry
        self._ranks = ranks
        self._memory = memory
        self._decode_clock = decode_clock
        self._unchecked_s = unchecked_s
        self._checks_cursors = checks_cursors
        self._clock = clock
        self._new_events: list[Event] = []
        self._decision: Decision = Wait("start")
        self._current: OperatorCursor | None = None
        self._blocked: BlockedRequest | None = None
        self._next_batch_id = 0
        self.cursors: dict[int, OperatorCursor] = {}

    @property
    def suspended_reqs(self) -> list[Any]:
        """SGLang's requests of all started and unfinished prefills."""
        return [req for cursor in self.cursors.values() for req in cursor.reqs]

    def run(self) -> None:
        """Serve until SGLang asks to exit."""
        engine = self._engine
        while not engine.gracefully_exit:
            self._collect_events()
            if engine._engine_paused:
                engine._record_scheduler_state_for_paused_engine()
                self._events.wait(_IDLE_WAIT_S)
                continue
            decision = self._ranks.agree(self._decide)
            self._new_events.clear()
            if decision is not None:
                self._decision = decision
            self._carry_out(self._decision)
            if envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY.get():
                engine.invariant_checker.self_check_during_busy()

    def admission_verdict(self, request: PrefillRequest) -> AdmissionDecision:
        """Count and judge a request that has just arrived and does not wait yet.

        The leader's verdict holds on all ranks, which take in the same requests in the same order.
        """
        self._telemetry.on_arrival(request)
        admission = self._admission
        if admission is None:
            return Admit("admission control is off")
        verdict = self._ranks.agree(
            lambda: admission.decide(request, self._scheduler.present, self._view(), self._clock())
        )
        if not isinstance(verdict, Admit):
            self._telemetry.on_not_admitted(request, verdict)
        return verdict

    def live_state(self) -> bytes:
        """Return ``ServerState`` as JSON. May be called in any thread."""
        return self._telemetry.live_state()

    def sleep_idle(self) -> None:
        """Block until a message comes or housekeeping is due."""
        self._events.wait(_IDLE_WAIT_S)

    def describe(self) -> dict[str, Any]:
        """Return the statistics as plain values."""
        return {
            "policy": self._policy_name,
            **self._telemetry.describe(),
            "weighted_attainment": self._engine.slo_resolver.classes.weighted_attainment(
                self._telemetry.attainment
            ),
            "prediction": self._scheduler.describe(),
            "num_unfinished_prefills": len(self.cursors),
            "is_idle": self._engine.is_fully_idle(),
        }

    # ---- events ----

    def _collect_events(self) -> None:
        taken = self._events.take()
        self._new_events += taken
        for event in taken:
            self._telemetry.on_event(event.kind)

    # ---- rounds ----

    def _decide(self) -> Decision | None:
        return self._run_round() if self._new_events else None

    def _run_round(self) -> Decision:
        """Decide once, for all events since the last round."""
        if any(event.kind is EventKind.KV_FREED for event in self._new_events):
            self._unblock()
        now_s, view = self._clock(), self._view()
        decision = self._ask_policy(view, now_s)
        self._telemetry.on_round(
            self._new_events,
            decision,
            view,
            now_s,
            end_s=self._clock(),
            num_decoding=len(self._engine.running_batch.reqs),
        )
        logger.debug("FlowPrefill: %s", decision)
        return decision

    def _view(self) -> RoundView:
        return RoundView(
            waiting=[prefill_request(req) for req in self._engine.waiting_queue],
            batches=[cursor.prefill for cursor in self.cursors.values()],
            current=None if self._current is None else self._current.prefill,
            decode=self._decode_view(),
            blocked=self._blocked,
            releases=self._releases() if self._is_blocked else (),
        )

    # ---- memory ----

    @property
    def _is_blocked(self) -> bool:
        """True if SGLang's admission turned somebody away since memory last came free."""
        return self._blocked is not None or any(
            cursor.prefill.num_missing_tokens for cursor in self.cursors.values()
        )

    def _unblock(self) -> None:
        """Memory may have come free: whoever was turned away may ask again."""
        self._blocked = None
        for cursor in self.cursors.values():
            cursor.prefill.num_missing_tokens = 0

    def _decide_without_memory(self) -> None:
        """Ask the policy once more, now that it can see who found no memory."""
        self._events.memory.watch()
        self._decision = self._ranks.agree(lambda: self._ask_policy(self._view(), self._clock()))

    def _releases(self) -> list[Release]:
        """Predict what running requests give back: at the latest when they reach their limit."""
        now_s = self._clock()
        return [
            Release(
                now_s
                + (req.sampling_params.max_new_tokens - len(req.output_ids))
                * self._decode_clock.default_tpot_s,
                req.kv.kv_allocated_len - req.kv.cache_protected_len,
            )
            for req in self._engine.running_batch.reqs
        ]

    def _ask_policy(self, view: RoundView, now_s: float) -> Decision:
        """Return a decision, and have the timer cause the next round that it asks for."""
        decision = self._scheduler.present.decide(view, now_s)
        due_s = math.inf
        if isinstance(decision, StartBatch | ResumeBatch):
            due_s = decision.review_s
        if view.decode is not None and view.decode.due_s > now_s:
            due_s = min(due_s, view.decode.due_s)
        self._events.timer.due_s = due_s
        return decision

    def _decode_view(self) -> DecodeView | None:
        if not self._engine.has_decode_work:
            return None
        return self._decode_clock.view(self._engine.running_batch.reqs)

    # ---- carrying out ----

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case StartBatch():
                self._start(decision)
            case ResumeBatch():
                self._resume(self.cursors[decision.batch_id], decision.reason)
            case DropBatches():
                for batch_id in decision.batch_ids:
                    self._restart(self.cursors[batch_id], decision.reason)
            case RunDecode():
                self._decode()
            case Wait():
                self._wait()

    def _start(self, decision: StartBatch) -> None:
        """Form the batch and run it; without memory for its head, decide again."""
        # By name: on a follower the decision holds copies of the leader's requests.
        waiting = {prefill_request(req).request_id: req for req in self._engine.waiting_queue}
        reqs = [waiting[request.request_id] for request in decision.requests]
        batch = self._engine.form_prefill_batch(reqs)
        if batch is None:
            self._blocked = BlockedRequest(decision.requests[0], self._engine.num_missing_tokens)
            self._decide_without_memory()
            return
        self._resume(self._open_cursor(batch), decision.reason)

    def _open_cursor(self, batch: Any) -> OperatorCursor:
        reqs = list(batch.reqs)
        requests = tuple(prefill_request(req) for req in reqs)
        num_tokens = sum(request.num_uncached_tokens for request in requests)
        num_active = sum(req.extend_len for req in reqs)
        prefill = PrefillBatch(
            self._next_batch_id,
            requests,
            self._scheduler.present.predict_s(requests),
            num_kv_tokens=num_tokens,
            held_bytes=int(
                num_tokens * self._memory.kv_bytes + num_active * self._memory.activation_bytes
            ),
            release_s=max(req.sampling_params.max_new_tokens for req in reqs)
            * self._decode_clock.default_tpot_s,
        )
        self._next_batch_id += 1
        cursor = OperatorCursor(prefill, reqs, batch, self._execution(batch, prefill), requests)
        self.cursors[prefill.batch_id] = cursor
        return cursor

    def _execution(self, batch: Any, prefill: PrefillBatch) -> Cursor[Any]:
        """Return the forward pass of a batch; one that is short as a whole runs unchecked."""
        is_checked = prefill.predicted_s > self._unchecked_s
        return self._runner.cursor(
            lambda: self._engine.run_forward(batch),
            is_preemptible=is_checked,
            is_bounded=is_checked,
        )

    def _resume(self, cursor: OperatorCursor, reason: str) -> None:
        """Run a prefill until it ends or an event comes."""
        if cursor.execution is None and not self._start_next_chunk(cursor):
            self._decide_without_memory()
            return
        before = self._current
        if before not in (None, cursor) and not before.prefill.num_missing_tokens:
            self._telemetry.on_preemption(before, cursor, self._clock(), reason=reason)
        self._current = cursor
        self._decision = ResumeBatch(cursor.prefill.batch_id, "no event since the last round")
        is_finished = self._run_slice(cursor, reason)
        if self._checks_cursors:
            assert cursor.execution is not None
            where = (cursor.prefill.batch_id, cursor.execution.num_boundaries, is_finished)
            self._ranks.require_equal("batch, boundary and end of a slice", where)
        if is_finished:
            self._end_forward(cursor)
        else:
            now_s = self._clock()
            self._telemetry.on_yield(
                cursor,
                now_s,
                causes=[self._events.cause],
                blocking_s=now_s - self._events.last_quiet_s,
            )

    def _run_slice(self, cursor: OperatorCursor, reason: str) -> bool:
        engine = self._engine
        engine.cur_batch_for_debug = cursor.batch
        self._events.start_slice()
        self._telemetry.on_resume(cursor, self._clock(), reason=reason)
        with engine.scheduler_stage_metrics.record("run_batch"):
            has_ended = cursor.run_slice(
                self._clock, engine.req_to_token_pool.req_to_token, check=self._checks_cursors
            )
        self._telemetry.on_tiles(self._runner.num_tiles, self._runner.num_tile_tokens)
        return has_ended

    def _start_next_chunk(self, cursor: OperatorCursor) -> bool:
        """Form the next forward pass of a chunked prompt; without memory for it, return False."""
        batch = self._engine.form_next_chunk(cursor.rest)
        if batch is None:
            cursor.prefill.num_missing_tokens = self._engine.num_missing_tokens
            return False
        cursor.start_forward(batch, self._execution(batch, cursor.prefill))
        return True

    def _end_forward(self, cursor: OperatorCursor) -> None:
        """Hand the result of a forward pass to SGLang; more chunks may follow."""
        engine, batch = self._engine, cursor.batch
        # SGLang books launch-to-result as prefill time; suspensions are not.
        batch.launch_ts = time.monotonic() - cursor.prefill.run_s
        is_last = cursor.rest is None
        if is_last:
            self._forget(cursor)
        through = [req for req in batch.reqs if req is not cursor.rest]
        engine.process_batch_result(batch, cursor.end_forward())
        now_s = self._clock()
        for req in filter(engine.counts_for_attainment, through):
            self._telemetry.on_first_token(prefill_request(req), now_s)
        self._report_completions(through)
        self._decode_clock.on_joined(through, now_s)
        engine.join_decode(batch, cursor.rest)
        if is_last:
            self._calibrate(cursor)
            self._telemetry.on_prefill_end(cursor, now_s)
            self._events.post(EventKind.COMPLETION)
        else:
            engine.publish_chunk(cursor.rest)
            cursor.prefill.requests = (prefill_request(cursor.rest),)
            self._telemetry.on_chunk_end(cursor, now_s)

    def _report_completions(self, reqs: Iterable[Any]) -> None:
        for req in filter(self._engine.is_complete, reqs):
            end = req.finished_reason.to_json()["type"]
            self._telemetry.on_completion(prefill_request(req), end)

    def _calibrate(self, cursor: OperatorCursor) -> None:
        """Learn from a prefill that ended, if it was one forward pass.

        What chunks take together is not what one forward pass over all of them would take.
        """
        if cursor.num_forwards > 1:
            return
        self._scheduler.learn(Observation.of(cursor.started_as, cursor.prefill.run_s))
        self._telemetry.on_prediction(self._scheduler.error)

    def _decode(self) -> None:
        start_s, num_requests = self._clock(), len(self._engine.running_batch.reqs)
        stepped = self._engine.run_decode_step()
        now_s = self._clock()
        self._decode_clock.on_step(start_s, now_s)
        self._telemetry.on_decode(start_s, now_s, num_requests)
        self._report_completions(stepped)
        self._events.post(EventKind.COMPLETION)

    def _wait(self) -> None:
        """Nothing to run: SGLang's idle housekeeping, then sleep."""
        engine = self._engine
        engine._sched_idled = True
        engine.cur_batch_for_debug = None
        engine.on_idle()
        if not engine.is_fully_idle():
            self._events.wait(_BLOCKED_WAIT_S)
            if engine.waiting_queue or self.cursors:
                self._unblock()
                self._events.post(EventKind.TIMER)

    # ---- leaving early ----

    def drain(self) -> None:
        """Run every suspended prefill to its end, undisturbed."""
        for cursor in list(self.cursors.values()):
            while cursor.prefill.batch_id in self.cursors:
                if cursor.execution is None and not self._start_next_chunk(cursor):
                    self._restart(cursor, QUIET_WANTED)
                    break
                assert cursor.execution is not None
                cursor.execution.is_preemptible = False
                self._run_slice(cursor, QUIET_WANTED)
                self._end_forward(cursor)

    def cancel_aborted(self) -> None:
        """Cancel prefills whose every request was aborted; their memory is free at once.

        A batch with a live member runs on: its forward pass needs all its rows, and SGLang drops
        the aborted members when it processes the result.
        """
        for cursor in list(self.cursors.values()):
            if all(req.to_finish is not None for req in cursor.reqs):
                now_s = self._cancel(cursor, self._engine.release_aborted)
                self._telemetry.on_cancel(cursor, now_s)

    def drop_for_decode(self) -> bool:
        """Drop the least urgent prefill for the memory of a decode step.

        Returns:
            False if there is none that may be dropped.
        """
        batch_id = self._ranks.agree(
            lambda: self._scheduler.present.choose_victim(self._view(), self._clock())
        )
        if batch_id is None:
            return False
        self._restart(self.cursors[batch_id], DECODE_NEEDS_MEMORY)
        return True

    def _restart(self, cursor: OperatorCursor, reason: str) -> None:
        """Cancel a prefill to start over later; its memory is free now."""
        now_s = self._cancel(cursor, self._engine.requeue)
        self._telemetry.on_restart(cursor, now_s, reason=reason)

    def _cancel(self, cursor: OperatorCursor, release: Callable[[Any], None]) -> float:
        """Abandon a prefill; return when."""
        self._forget(cursor)
        now_s = self._clock()
        cursor.cancel(now_s)
        for req in list(cursor.reqs):
            release(req)
        self._events.post(EventKind.ABORT)
        return now_s

    def _forget(self, cursor: OperatorCursor) -> None:
        del self.cursors[cursor.prefill.batch_id]
        if self._current is cursor:
            self._current = None
