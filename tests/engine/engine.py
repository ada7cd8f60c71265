"""A real scheduler of SGLang in a child process, driven step by step by a script. No HTTP.

Everything of the engine is real: ``FlowPrefillScheduler`` (or SGLang's own), the model runner, the
KV pools, the prefix cache, the ZMQ sockets and messages, SGLang's leak checks at their strictest.
Replaced are three inputs of the event loop, all of them here and nowhere else:

* the event source: a script says at each boundary whether the scheduler should look up,
* the policy: the script decides what runs next,
* the clock: it counts its readings, so that a run depends on its seed and on nothing else.
"""

import itertools
import math
import multiprocessing
import os
import tempfile
import traceback
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from sglang_flowprefill.core import PrefillCost

CHILD_TIMEOUT_S = 600.0
_ENDS_WITHIN_S = 10.0
_MAX_ROUNDS = 10_000  # from idle to idle; hundreds are many
_ARRIVES_WITHIN_MS = 10_000
_COST = PrefillCost(base_s=0.005, per_token_s=0.001, per_attention_pair_s=0.0)
"""Of the policy: some readings of the clock for each token, as the loop makes them."""


@dataclass(frozen=True)
class EngineSettings:
    """What to serve, and how.

    Attributes:
        model_path: Folder of the model.
        flags: More of SGLang's command line.
        is_stock: SGLang's own scheduler, FlowPrefill not enabled.
        overcommits: Admission reserves one token of memory for what a request will generate, so
            that decode steps run out of memory.
    """

    model_path: str
    flags: tuple[str, ...] = ()
    is_stock: bool = False
    overcommits: bool = False


@dataclass(frozen=True)
class Request:
    """What a client asks for: a greedy continuation.

    Attributes:
        request_id: No id may be the beginning of another: SGLang aborts by prefix.
        prompt: Token ids.
        num_output_tokens: To generate.
        ttft_slo_ms: Objective, for scripts that let the policy decide.
        with_logprobs: Return log-probabilities of prompt and continuation.
    """

    request_id: str
    prompt: tuple[int, ...]
    num_output_tokens: int
    ttft_slo_ms: float = 1000.0
    with_logprobs: bool = False


@dataclass(frozen=True)
class Prefill:
    """The prefill forward that reached the end of one request's prompt.

    Attributes:
        next_token_logits: ``[vocabulary]`` float32, of the prompt's last position.
        num_before: Prompt tokens that this forward found in the KV cache: from the prefix cache,
            or from an earlier chunk.
        num_requests: In the same batch.
    """

    next_token_logits: Any
    num_before: int
    num_requests: int


@dataclass
class Answer:
    """What a client would have got for one request, and what its prefills computed.

    Attributes:
        smallest_top_gap: By how much the likeliest token led the second, where that was least.
    """

    tokens: list[int] = field(default_factory=list)
    input_logprobs: list[float] = field(default_factory=list)
    output_logprobs: list[float] = field(default_factory=list)
    num_cached: int = 0
    num_retractions: int = 0
    finish_type: str | None = None
    num_final_messages: int = 0
    prefills: list[Prefill] = field(default_factory=list)
    smallest_top_gap: float = math.inf


class Script(Protocol):
    """Drives one engine from idle to idle."""

    def at_boundary(self, engine: "Engine") -> bool:
        """Tell at an operator boundary whether the scheduler should look up."""

    def when_quiet(self, engine: "Engine") -> None:
        """Nothing can run: send the next message, or ``engine.stop()``."""

    def decide(self, engine: "Engine", view: Any) -> Any:
        """Return a ``core.Decision`` for a ``core.RoundView``."""


# ---- the test's side ----


def in_child(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a module-level function in a process that has SGLang loaded; return what it returns.

    Raises:
        AssertionError: It raised, or its process died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.preload"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, partial(function, *args, **kwargs)))
    process.start()
    sender.close()
    try:
        assert receiver.poll(CHILD_TIMEOUT_S), f"{function.__name__} took over {CHILD_TIMEOUT_S} s"
        is_returned, value = receiver.recv()
    except EOFError:
        process.join(_ENDS_WITHIN_S)
        raise AssertionError(f"the engine process died: {process.exitcode}") from None
    finally:
        process.join(_ENDS_WITHIN_S)
        process.kill()
        process.join()
        receiver.close()
    assert is_returned, value
    return value


def _report(sender: Connection, function: Callable[[], Any]) -> None:
    import tests.engine.preload  # noqa: F401 (there already, unless the forkserver could not)

    try:
        message = (True, function())
    except BaseException:  # noqa: BLE001 (SGLang leaves by SystemExit too)
        message = (False, traceback.format_exc())
    sender.send(message)
    sender.close()


# ---- the child's side ----


class Engine:
    """One scheduler and this process's ends of its sockets.

    Attributes:
        scheduler: SGLang's scheduler.
        answers: By request id, complete once ``serve`` has returned.
        num_boundaries: Operator boundaries passed so far.
        num_suspensions: How many of them gave control to the scheduler.
        own_decision: Returns what FlowPrefill itself would decide in the round that a script is
            asked for; its costs are not measured, so that they depend on nothing either.
        clock: Counts its readings as milliseconds.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._is_stock = settings.is_stock
        self._script: Script | None = None
        self._num_rounds = 0
        self.answers: dict[str, Answer] = {}
        self.num_boundaries = 0
        self.num_suspensions = 0
        self.own_decision: Callable[[], Any] | None = None
        readings = itertools.count()
        self.clock = lambda: next(readings) * 1e-3
        self.scheduler = self._start(settings)
        self._record_logits()

    def serve(self, script: Script) -> None:
        """Run the scheduler's own loop until the script stops it; collect all answers."""
        self._script = script
        self._num_rounds = 0
        self.scheduler.gracefully_exit = False
        self.scheduler.event_loop_normal()
        self._script = None
        self._receive_answers()

    def stop(self) -> None:
        """Let ``serve`` return."""
        assert self.scheduler.is_fully_idle()
        self.scheduler.gracefully_exit = True

    @property
    def is_idle(self) -> bool:
        """True if no request is anywhere in the scheduler."""
        return bool(self.scheduler.is_fully_idle())

    @property
    def num_locked_tokens(self) -> int:
        """Tokens of the prefix cache that somebody holds a lock on."""
        return int(self.scheduler.tree_cache.protected_size())

    def statistics(self) -> dict[str, Any]:
        """Return FlowPrefill's own account of its work."""
        statistics: dict[str, Any] = self.scheduler.describe()
        return statistics

    # ---- messages ----

    def send(self, *requests: Request) -> None:
        """Send requests in one message."""
        from sglang.srt.managers.io_struct import BatchTokenizedGenerateReqInput

        messages = [_message(request) for request in requests]
        for message in messages:
            self.answers[message.rid] = Answer()
        batch = BatchTokenizedGenerateReqInput(batch=messages, rids=[m.rid for m in messages])
        self._deliver(messages[0] if len(messages) == 1 else batch)

    def abort(self, request_id: str) -> None:
        """Abort one request, wherever it is."""
        from sglang.srt.managers.io_struct import AbortReq

        self._deliver(AbortReq(rid=request_id))

    def ask_to_flush(self) -> None:
        """Ask for what SGLang refuses, or not, by whether anything is unfinished."""
        from sglang.srt.managers.io_struct import FlushCacheReqInput

        self._deliver(FlushCacheReqInput())

    def ask_for_weights(self) -> None:
        """Send a message that wants a quiet engine: suspended prefills run to their end first."""
        from sglang.srt.managers.io_struct import GetWeightsByNameReqInput

        self._deliver(GetWeightsByNameReqInput(name="model.norm.weight", truncate_size=1))

    def update_weights(self, model_path: Path) -> None:
        """Ask for another model's weights, of the same shapes; they count from here on."""
        from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput

        self._deliver(UpdateWeightFromDiskReqInput(model_path=str(model_path), load_format="auto"))

    def flush_cache(self) -> None:
        """Empty the prefix cache; the engine must be idle."""
        assert self.scheduler.flush_cache(empty_cache=False)

    def _deliver(self, message: Any) -> None:
        """Send, and wait until it can be read: ZMQ hands over on a thread of its own."""
        from sglang.srt.managers.io_struct import sock_send

        sock_send(self._to_scheduler, message)
        assert self.scheduler.ipc_channels.recv_from_tokenizer.poll(_ARRIVES_WITHIN_MS)

    def _receive_answers(self) -> None:
        from sglang.srt.managers.io_struct import AbortReq, BatchTokenIDOutput, sock_recv

        while any(answer.finish_type is None for answer in self.answers.values()):
            assert self._from_scheduler.poll(_ARRIVES_WITHIN_MS), "a request got no answer"
            message = sock_recv(self._from_scheduler)
            if isinstance(message, AbortReq):
                answer = self.answers[message.rid]
                answer.finish_type = "abort"
                answer.num_final_messages += 1
            elif isinstance(message, BatchTokenIDOutput):
                for index, request_id in enumerate(message.rids):
                    _extend(self.answers[request_id], message, index)

    # ---- construction ----

    def _start(self, settings: EngineSettings) -> Any:
        """Build the scheduler as SGLang's ``run_scheduler_process`` does."""
        os.environ["SGLANG_FLOWPREFILL"] = "0" if settings.is_stock else "1"
        os.environ["SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY"] = "1"
        os.environ["SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE"] = "1"
        os.environ["SGLANG_CHECK_KV_PAGE_INVARIANTS"] = "1"
        from sglang.srt.managers import schedule_policy
        from sglang.srt.managers import scheduler as scheduler_module
        from sglang.srt.plugins import load_plugins
        from sglang.srt.runtime_context import SpawnRanks, publish
        from sglang.srt.server_args import PortArgs, prepare_server_args

        tempfile.tempdir = str(Path(settings.model_path).parent)  # SGLang leaves its sockets there
        load_plugins()
        server_args = prepare_server_args(_command_line(settings))
        server_args.resolve_once()
        port_args = PortArgs.init_new(server_args)
        publish(server_args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
        self._open_sockets(port_args)
        if settings.overcommits:
            schedule_policy.CLIP_MAX_NEW_TOKENS = 1
        if not settings.is_stock:
            _replace_inputs_of_loop(self)
        scheduler = scheduler_module.Scheduler(server_args, port_args)
        is_ours = type(scheduler).__module__.startswith("sglang_flowprefill")
        assert is_ours is not settings.is_stock
        if settings.is_stock:
            scheduler.maybe_sleep_on_idle = self._on_quiet
        else:  # or SGLang would leave out its leak check between two steps
            assert scheduler.invariant_checker.get_last_batch() is not None
        return scheduler

    def _open_sockets(self, port_args: Any) -> None:
        import zmq
        from sglang.srt.utils.network import get_zmq_socket

        context = zmq.Context()
        self._to_scheduler = get_zmq_socket(
            context, zmq.PUSH, port_args.scheduler_input_ipc_name, bind=True
        )
        self._from_scheduler = get_zmq_socket(
            context, zmq.PULL, port_args.tokenizer_ipc_name, bind=True
        )

    def _record_logits(self) -> None:
        """Look at the logits of every forward: answers carry probabilities of few tokens."""
        process = self.scheduler.process_batch_result

        def recording(batch: Any, result: Any, *args: Any) -> Any:
            logits = result.logits_output.next_token_logits.float()
            top = logits.topk(2).values
            rows = zip(batch.reqs, logits, (top[:, 0] - top[:, 1]).tolist(), strict=True)
            for req, row, gap in rows:
                if req is batch.chunked_req:
                    continue  # not through its prompt
                answer = self.answers[req.rid]
                answer.smallest_top_gap = min(answer.smallest_top_gap, gap)
                if batch.forward_mode.is_extend():
                    num_before = int(req.prefix_len or 0)
                    answer.prefills.append(
                        Prefill(row.clone().numpy(), num_before, len(batch.reqs))
                    )
            return process(batch, result, *args)

        self.scheduler.process_batch_result = recording

    # ---- what the loop asks ----

    def _on_boundary(self) -> bool:
        self.num_boundaries += 1
        assert self._script is not None
        is_interrupted = self._script.at_boundary(self)
        self.num_suspensions += is_interrupted
        return is_interrupted

    def _on_quiet(self) -> None:
        has_mail = self.scheduler.ipc_channels.recv_from_tokenizer.poll(0)
        if self._script is not None and not has_mail:
            self._script.when_quiet(self)

    def _on_round(self, view: Any) -> Any:
        self._num_rounds += 1
        assert self._num_rounds < _MAX_ROUNDS, f"no progress any more: {view}"
        assert self._script is not None
        return self._script.decide(self, view)


def _command_line(settings: EngineSettings) -> list[str]:
    flags = ["--model-path", settings.model_path, "--device", "cpu", "--dtype", "float32"]
    flags += ["--attention-backend", "torch_native", "--skip-tokenizer-init"]
    flags += ["--mem-fraction-static", "0.7", "--log-level", "error"]
    if settings.is_stock:
        flags += ["--disable-overlap-schedule", "--chunked-prefill-size", "-1"]
    else:
        folder = str(Path(settings.model_path).parent)
        flags += ["--flowprefill-check-cursors", "--flowprefill-profile-cache-dir", folder]
        # However short a prefill is predicted to be, it may be suspended.
        flags += ["--flowprefill-min-preemption-gain-ms", "0"]
    return [*flags, *settings.flags]


def _message(request: Request) -> Any:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    params = SamplingParams(
        max_new_tokens=request.num_output_tokens,
        temperature=0.0,
        ignore_eos=True,
        custom_params={"ttft_slo_ms": request.ttft_slo_ms},
    )
    params.normalize(None)
    return TokenizedGenerateReqInput(
        rid=request.request_id,
        input_text=None,
        input_ids=array("q", request.prompt),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=params,
        return_logprob=request.with_logprobs,
        logprob_start_len=0 if request.with_logprobs else -1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
    )


def _extend(answer: Answer, message: Any, index: int) -> None:
    answer.tokens += list(message.output_ids[index])
    answer.num_cached = message.cached_tokens[index]
    answer.num_retractions = message.retraction_counts[index]
    if message.input_token_logprobs_val:
        # The first position has nothing before it and therefore no log-probability.
        answer.input_logprobs += [
            v for v in message.input_token_logprobs_val[index] if v is not None
        ]
        answer.output_logprobs += list(message.output_token_logprobs_val[index])
    reason = message.finished_reasons[index]
    if reason is not None:
        answer.finish_type = reason["type"]
        answer.num_final_messages += 1


def _replace_inputs_of_loop(engine: Engine) -> None:
    """Put the script in the places of event source, policy and clock."""
    from sglang_flowprefill.adapter.serving.build import Inputs
    from sglang_flowprefill.adapter.serving.scheduler import FlowPrefillScheduler
    from sglang_flowprefill.core import (
        CalibratedDecider,
        Calibration,
        Distortion,
        ResumeBatch,
        StartBatch,
    )
    from sglang_flowprefill.loop.event_sources import EventSources

    class ScriptedSources(EventSources):
        def has_event(self) -> bool:
            self.cause = "script"
            return engine._on_boundary()

        def wait(self, timeout_s: float) -> None:
            engine._on_quiet()

    class ScriptedDecider:
        """Decides as the script says, with a round at every turn, not only after messages."""

        def __init__(self, decider: CalibratedDecider) -> None:
            calibration = Calibration.from_profile(_COST)
            self._own = CalibratedDecider(decider.present, calibration, Distortion())
            self.learn = self._own.learn

        @property
        def present(self) -> Any:
            return self._own.present

        def decide(self, view: Any, now_s: float) -> Any:
            engine.own_decision = lambda: self._own.decide(view, now_s)
            decision = engine._on_round(view)
            if isinstance(decision, StartBatch | ResumeBatch):
                return replace(decision, review_s=now_s)
            return decision

    FlowPrefillScheduler.inputs = Inputs(engine.clock, ScriptedSources, ScriptedDecider)
