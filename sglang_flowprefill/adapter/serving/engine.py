"""SGLang's scheduler as the engine of the loop: its primitives, made of upstream's parts."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from sglang.srt.disaggregation.utils import prepare_abort
from sglang.srt.environ import envs
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.observability.req_time_stats import set_schedule_time_batch

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.adapter.model.forward_state import BatchFingerprint
from sglang_flowprefill.adapter.model.model_runner import PreemptibleModelRunner
from sglang_flowprefill.adapter.serving.intake import Intake
from sglang_flowprefill.adapter.serving.prefill_adder import MemoryClaims
from sglang_flowprefill.adapter.serving.requests import (
    degrade_prefill_request,
    is_prefix_warmer,
    joined_s,
    note_joined,
    prefill_request,
    update_cached_tokens,
)
from sglang_flowprefill.adapter.serving.started import SGLangPrefill
from sglang_flowprefill.api.overload import Rejection, reject
from sglang_flowprefill.core import PrefillBatch, PrefillRequest, Reject
from sglang_flowprefill.errors import FlowPrefillError, ForwardError
from sglang_flowprefill.loop.engine import (
    Completion,
    DecodeStep,
    DecodingRequest,
    ForwardEnd,
    Shortfall,
)
from sglang_flowprefill.loop.inflight import InflightTable

logger = logging.getLogger(__name__)

_sglang = releases.scheduling()


class _NoGrammars:
    """Stands for SGLang's grammar queue while a batch is formed: nobody else may join it."""

    @staticmethod
    def has_waiting_grammars() -> bool:
        return False


class SGLangEngine:
    """``loop.Engine`` over SGLang's scheduler, which it drives from the outside.

    Args:
        scheduler: SGLang's scheduler.
        runner: Makes prefill forwards suspendable.
        intake: What messages put down.
        inflight: The loop's table, read to see what is suspended.
        clock: Monotonic time in seconds.
        is_alone: True without other ranks: only then may a forward pass fail by itself.
        checks_cursors: Verify suspended prefills at every resume.

    Attributes:
        max_chunk_tokens: Longest prompt of one forward pass, in tokens; None for any length.
    """

    def __init__(
        self,
        scheduler: Any,
        runner: PreemptibleModelRunner,
        intake: Intake,
        inflight: InflightTable[SGLangPrefill],
        clock: Callable[[], float],
        *,
        max_chunk_tokens: int | None,
        is_alone: bool = True,
        checks_cursors: bool = False,
    ) -> None:
        self.max_chunk_tokens = max_chunk_tokens
        self._scheduler = scheduler
        self._runner = runner
        self._intake = intake
        self._inflight = inflight
        self._clock = clock
        self._is_alone = is_alone
        self._checks_cursors = checks_cursors

    @property
    def is_closing(self) -> bool:
        """True once SGLang asks to exit."""
        return bool(self._scheduler.gracefully_exit)

    @property
    def is_paused(self) -> bool:
        """True while generation is paused."""
        return bool(self._scheduler._engine_paused)

    @property
    def is_idle(self) -> bool:
        """True if no request is anywhere in the scheduler."""
        return bool(self._scheduler.is_fully_idle())

    @property
    def waiting(self) -> list[PrefillRequest]:
        """Requests that wait for their prefill."""
        return [prefill_request(req) for req in self._scheduler.waiting_queue]

    @property
    def running(self) -> list[DecodingRequest]:
        """Requests past their prefill that want a next token."""
        batch = self._scheduler.running_batch
        if batch.is_empty() or batch.is_prefill_only:
            return []
        return [
            DecodingRequest(
                prefill_request(req).slo,
                joined_s(req),
                req.sampling_params.max_new_tokens - len(req.output_ids),
                req.kv.kv_allocated_len - req.kv.cache_protected_len,
            )
            for req in batch.reqs
        ]

    @property
    def wants_quiet(self) -> bool:
        """True if a message is held back until no prefill is in flight."""
        return bool(self._intake.held)

    def take_arrivals(self) -> list[PrefillRequest]:
        """Return the new requests since the last call."""
        return [prefill_request(req) for req in self._intake.take_arrived()]

    def dispatch_held(self) -> None:
        """Act on the messages that were held back."""
        self._scheduler.process_input_requests(self._intake.take_held())

    def degrade(self, requests: Sequence[PrefillRequest]) -> None:
        """Have waiting requests served after all others."""
        for req in self._waiting_reqs(requests):
            degrade_prefill_request(req)

    def refuse(self, refused: Sequence[tuple[PrefillRequest, Reject]]) -> None:
        """Take waiting requests out of the queue and answer each with its verdict."""
        reqs = self._waiting_reqs([request for request, _ in refused])
        gone = {id(req) for req in reqs}
        scheduler = self._scheduler
        scheduler.waiting_queue = [req for req in scheduler.waiting_queue if id(req) not in gone]
        for req, (request, verdict) in zip(reqs, refused, strict=True):
            self._answer_refused(req, reject(verdict.reason, request.slo, verdict.retry_after_s))

    def _answer_refused(self, req: Any, rejection: Rejection) -> None:
        scheduler = self._scheduler
        abort = _sglang.make_abort_req(req, finished_reason=rejection.finish_reason)
        req.time_stats.trace_ctx.abort(abort_info={"reason": rejection.message})
        scheduler.send_abort_output(abort, req)
        scheduler._release_aborted_request(req)

    def start(self, requests: Sequence[PrefillRequest]) -> SGLangPrefill | Shortfall:
        """Admit these waiting requests as SGLang would if the queue held no others."""
        batch = self.form_batch(self._waiting_reqs(requests))
        if batch is None:
            return Shortfall(self._scheduler.memory_claims.num_missing_tokens)
        return SGLangPrefill(batch, self._execution(batch), self._runner.activation_bytes)

    def start_next_chunk(self, work: SGLangPrefill) -> Shortfall | None:
        """Allocate memory for the next forward pass of a partly prefilled request."""
        batch = self.form_next_chunk(work.rest)
        if batch is None:
            return Shortfall(self._scheduler.memory_claims.num_missing_tokens)
        work.start_forward(batch, self._execution(batch))
        return None

    def run(self, work: SGLangPrefill, *, is_preemptible: bool) -> bool:
        """Run until the forward pass ends or an event wants the scheduler."""
        scheduler, execution = self._scheduler, work.execution
        assert execution is not None
        if work.fingerprint is not None:
            work.fingerprint.verify()
        execution.is_preemptible = execution.is_bounded = is_preemptible
        scheduler.cur_batch_for_debug = work.batch
        try:
            with scheduler.scheduler_stage_metrics.record("run_batch"):
                has_ended = execution.resume()
        except FlowPrefillError:
            raise
        except Exception as error:
            if not self._is_alone:  # the other ranks would wait in a collective for ever
                raise
            raise ForwardError(error) from error
        if self._checks_cursors and not has_ended:
            work.fingerprint = BatchFingerprint(
                work.batch, scheduler.req_to_token_pool.req_to_token
            )
        return has_ended

    def end_forward(self, work: SGLangPrefill, batch: PrefillBatch) -> ForwardEnd:
        """Hand the result of a forward pass to SGLang; what is through decodes from now on."""
        schedule_batch, rest = work.batch, work.rest
        # SGLang books launch-to-result as prefill time; suspensions are not.
        schedule_batch.launch_ts = time.monotonic() - batch.run_s
        through = [req for req in schedule_batch.reqs if req is not rest]
        self._scheduler.process_batch_result(schedule_batch, work.end_forward())
        now_s = self._clock()
        for req in through:
            note_joined(req, now_s)
        end = ForwardEnd(
            [prefill_request(req) for req in through if _counts_for_attainment(req)],
            _completions(through),
        )
        self._join_decode(schedule_batch, rest)
        if rest is not None:
            self.publish_chunk(rest)
        return end

    def requeue(self, work: SGLangPrefill) -> None:
        """Give back the memory of a prefill; its requests start over later."""
        for req in work.cancel():
            _sglang.release_uncached(req, self._scheduler.tree_cache)
            req.reset_for_retract()
            self._scheduler._add_request_to_queue(req, is_retracted=True)

    def release_aborted(self, work: SGLangPrefill) -> None:
        """Give back everything of aborted requests whose prefill was cancelled; answer them."""
        for req in work.cancel():
            self._end_early(req, req.to_finish)

    def release_failed(self, work: SGLangPrefill, error: Exception) -> None:
        """Give back everything of requests whose forward pass raised; answer them with HTTP 500."""
        logger.error("FlowPrefill: %s", error, exc_info=error.__cause__)
        reason = FINISH_ABORT(str(error), HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError")
        for req in work.cancel():
            self._end_early(req, reason)

    def has_decode_memory(self) -> bool:
        """Tell whether the next decode step finds the memory that it needs."""
        batch = self._scheduler.running_batch
        batch.filter_batch()
        return bool(batch.is_empty() or batch.check_decode_mem())

    def decode(self) -> DecodeStep:
        """Run one decode step of all running requests."""
        scheduler = self._scheduler
        num_requests = len(scheduler.running_batch.reqs)
        scheduler.running_batch.filter_batch()
        batch = scheduler.running_batch
        if not batch.is_empty():
            batch = scheduler.update_running_batch(batch)
        if batch is None or batch.is_empty():
            return DecodeStep(num_requests)
        scheduler.cur_batch_for_debug = batch
        scheduler.process_batch_result(batch, scheduler.run_batch(batch))
        completions = _completions(batch.reqs)
        batch.filter_batch()
        return DecodeStep(num_requests, completions)

    def on_idle(self) -> None:
        """Do SGLang's idle housekeeping."""
        self._scheduler._sched_idled = True
        self._scheduler.cur_batch_for_debug = None
        self._scheduler.on_idle()

    def on_paused(self) -> None:
        """Book a pass in which the engine is paused, and show that the loop is alive.

        SGLang's HTTP process keeps health checks to itself during a pause, and waits for any
        message at all from here. With several tokenizer workers a message needs an addressee.
        """
        scheduler = self._scheduler
        scheduler._record_scheduler_state_for_paused_engine()
        if scheduler.server_args.tokenizer_worker_num == 1:
            scheduler.return_health_check_ipcs.append(None)
        self._answer_health_checks()

    def after_pass(self) -> None:
        """Answer health checks; run SGLang's leak checks, where they are on.

        SGLang answers a busy server's health checks at the end of the next batch, which prefills
        that overtake one another put off. Here a pass is the sign of life: a check that comes
        interrupts the running prefill at its next boundary.
        """
        self._answer_health_checks()
        if envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY.get():
            self._scheduler.invariant_checker.self_check_during_busy()

    def _answer_health_checks(self) -> None:
        while self._scheduler.return_health_check_ipcs:
            self._scheduler.maybe_send_health_check_signal()

    def has_waiting_grammars(self) -> bool:
        """Tell whether requests wait for a grammar compiler."""
        return bool(self._scheduler.grammar_manager.has_waiting_grammars())

    def admit_ready_grammars(self) -> int:
        """Queue the requests whose grammar is compiled; return how many."""
        if not self.has_waiting_grammars():
            return 0
        ready = self._scheduler.grammar_manager.get_ready_grammar_requests()
        for req in ready:
            self._scheduler._add_request_to_queue(req)
        return len(ready)

    def room(self) -> tuple[float, ...]:
        """Return what SGLang's admission may give out; every number grows as memory comes free.

        KV slots (those of evictable cache entries too), request rows, and the share of their
        longest possible output that it does not reserve for running requests.
        """
        scheduler = self._scheduler
        return (
            scheduler.token_to_kv_pool_allocator.available_size()
            + scheduler.tree_cache.evictable_size(),
            scheduler.req_to_token_pool.available_size(),
            1.0 - scheduler.new_token_ratio_tracker.current,
        )

    def form_batch(self, reqs: Sequence[Any]) -> Any:
        """Admit these ``Req`` objects as if the queue held no others.

        Returns:
            A ``ScheduleBatch`` with memory allocated, or None if not even the first fits. Its
            ``chunked_req`` is the request that needs more forward passes after this one.
        """
        chosen = {id(req) for req in reqs}
        scheduler = self._scheduler
        others = [req for req in scheduler.waiting_queue if id(req) not in chosen]
        scheduler.waiting_queue = list(reqs)
        batch = self._admit()
        scheduler.waiting_queue = others + scheduler.waiting_queue
        if batch is not None:
            assert chosen.issuperset(map(id, batch.reqs)), "a batch holds only what was asked for"
            set_schedule_time_batch(batch)
            for req in batch.reqs:
                update_cached_tokens(req)
        return batch

    def form_next_chunk(self, req: Any) -> Any:
        """Allocate memory for the next forward pass of a partly prefilled ``Req``.

        Returns:
            A ``ScheduleBatch`` as from ``form_batch``, or None if there is no memory.
        """
        scheduler = self._scheduler
        others, scheduler.waiting_queue = scheduler.waiting_queue, []
        scheduler.chunked_req = req
        batch = self._admit()
        scheduler.waiting_queue = others + scheduler.waiting_queue
        assert batch is None or list(batch.reqs) == [req], "a chunk is of one prompt"
        return batch

    def publish_chunk(self, req: Any) -> None:
        """Let the prefix cache have what the forward passes of a ``Req`` computed so far."""
        self._scheduler.stash_chunked_request(req)
        update_cached_tokens(req)

    def run_forward(self, batch: Any) -> Any:
        """Run one forward pass and sample. Inside a cursor this may be suspended.

        The undecorated ``run_batch``: its stage timer assumes that stages nest.
        """
        return self._scheduler.run_batch.__wrapped__(self._scheduler, batch)

    def _execution(self, batch: Any) -> Any:
        return self._runner.cursor(lambda: self.run_forward(batch))

    def _waiting_reqs(self, requests: Sequence[PrefillRequest]) -> list[Any]:
        """Find requests in the queue by id: on a follower they are copies of the leader's."""
        waiting = {req.rid: req for req in self._scheduler.waiting_queue}
        return [waiting[request.request_id] for request in requests]

    def _admit(self) -> Any:
        """Let upstream form a batch from ``waiting_queue`` and ``chunked_req``.

        SGLang tracks one partly prefilled request at a time, in attributes that are set here for
        the length of one call: between calls there is none, and any number of them are suspended.
        """
        scheduler = self._scheduler
        scheduler.running_batch.batch_is_full = False
        scheduler.chunked_prefill_size = self.max_chunk_tokens
        in_flight = [req for cursor in self._inflight for req in cursor.work.reqs]
        scheduler.memory_claims = MemoryClaims(
            [req for req in in_flight if req is not scheduler.chunked_req]
        )
        with self._grammars_hidden():
            plan = scheduler.get_new_batch_prefill(scheduler.running_batch)
        scheduler.chunked_prefill_size = scheduler.chunked_req = None
        scheduler.running_batch = plan.running_batch
        return plan.batch_to_run

    @contextmanager
    def _grammars_hidden(self) -> Iterator[None]:
        """Keep requests whose grammar becomes ready just now out of the batch being formed."""
        manager = self._scheduler.grammar_manager
        self._scheduler.grammar_manager = _NoGrammars
        try:
            yield
        finally:
            self._scheduler.grammar_manager = manager

    def _join_decode(self, batch: Any, rest: Any) -> None:
        """Let a prefilled batch decode with the running requests, without its unfinished one."""
        batch.filter_batch(rest)
        if batch.is_empty():
            return
        scheduler = self._scheduler
        if scheduler.running_batch.is_empty():
            scheduler.running_batch = batch
        else:
            scheduler.running_batch.merge_batch(batch)

    def _end_early(self, req: Any, reason: Any) -> None:
        """Give back everything of a request whose prefill is gone, and answer it."""
        prepare_abort(req, reason.message, reason.status_code)
        req.time_stats.trace_ctx.abort(abort_info={"reason": reason.message})
        req.to_finish = None
        self._scheduler._release_aborted_request(req)
        _sglang.release_uncached(req, self._scheduler.tree_cache)
        told = reason.to_json() if reason.status_code is not None else None
        abort = _sglang.make_abort_req(req, finished_reason=told)
        self._scheduler.send_abort_output(abort, req)


def _completions(reqs: Sequence[Any]) -> list[Completion]:
    """Return the users' requests among these that have got their last token."""
    return [
        Completion(prefill_request(req), req.finished_reason.to_json()["type"])
        for req in reqs
        if req.finished() and is_from_user(req)
    ]


def _counts_for_attainment(req: Any) -> bool:
    """Tell whether a first token is a user's, and not an aborted one's."""
    return is_from_user(req) and not isinstance(req.finished_reason, FINISH_ABORT)


def is_from_user(req: Any) -> bool:
    """Tell whether a ``Req`` counts: no health check, nor what SGLang adds to ``n`` samples."""
    return not (_sglang.is_health_check_generate_req(req) or is_prefix_warmer(req))
