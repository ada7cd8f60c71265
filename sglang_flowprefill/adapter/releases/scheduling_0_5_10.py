"""The scheduler's names in SGLang 0.5.10.post1, whose scheduler is one class with mixins.

``Scheduler`` gives 0.5.23's names to what is there. ``Req`` gets 0.5.23's names as read-only
properties (``inflight_middle_chunks`` can be written); SGLang's own attributes stay as they are.
A forward pass of this release keeps nothing in globals that an admissible server would use:
``startup_0_5_10`` and ``unsupported.py`` refuse what does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sglang.srt.layers.attention.torch_native_backend import (
    TorchNativeAttnBackend as UpstreamAttnBackend,
)
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm, LayerNorm, RMSNorm
from sglang.srt.managers import scheduler as upstream
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import PrefillAdder as UpstreamAdder
from sglang.srt.managers.scheduler import Scheduler as UpstreamScheduler
from sglang.srt.managers.scheduler import is_health_check_generate_req
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.model_executor.forward_batch_info import ForwardMode

__all__ = [
    "ASKS_LM_HEAD_METHOD",
    "NORMS",
    "PrefillAdder",
    "Scheduler",
    "TorchNativeAttnBackend",
    "data_parallel_rank",
    "forward_flags",
    "is_health_check_generate_req",
    "is_metrics_enabled",
    "make_abort_req",
    "release_uncached",
    "set_forward_context",
    "tile_flashinfer",
    "token_ids",
]

NORMS = (RMSNorm, GemmaRMSNorm, Gemma3RMSNorm, LayerNorm)
ASKS_LM_HEAD_METHOD = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """What admission decided."""

    batch_to_run: Any
    running_batch: Any


@dataclass(frozen=True, slots=True)
class _Extending:
    """Requests whose prefill has begun, as SGLang's checks want to see a batch."""

    reqs: list[Any]
    forward_mode: ForwardMode = ForwardMode.EXTEND


class Scheduler(UpstreamScheduler):
    """SGLang's scheduler under the names of a later one."""

    gracefully_exit = False
    scheduler_stage_metrics = SimpleNamespace(record=lambda _stage: nullcontext())

    # ---- parts that are objects of their own later ----

    @property
    def ipc_channels(self) -> Any:
        """The sockets, which are attributes of the scheduler itself."""
        return self

    @property
    def invariant_checker(self) -> Any:
        """The checks while busy, likewise."""
        return SimpleNamespace(self_check_during_busy=self._check_with_suspended)

    @property
    def new_token_ratio_tracker(self) -> Any:
        """The share of possible output that admission reserves."""
        return SimpleNamespace(current=self.new_token_ratio)

    # ---- the loop's steps ----

    def ingest_requests(self) -> list[Any]:
        """Take in, broadcast and dispatch what has come; return it."""
        self._abort_on_waiting_timeout()
        self._abort_on_running_timeout()
        messages: list[Any] = self.recv_requests()
        self.process_input_requests(messages)
        return messages

    def on_idle(self) -> None:
        """Housekeeping; its checks presume that nothing is in flight."""
        if self.is_fully_idle():
            self.self_check_during_idle()

    def get_new_batch_prefill(self, _running_batch: Any) -> _Plan:
        """Form a batch with the adder that ``get_prefill_adder_class`` names."""
        upstream.PrefillAdder = self.get_prefill_adder_class()
        batch = super().get_new_batch_prefill()
        return _Plan(batch, self.running_batch)

    def run_batch(self, batch: Any) -> Any:
        """Run a forward pass. Wrapped later in a stage timer, here in nothing."""
        return super().run_batch(batch)

    run_batch.__wrapped__ = run_batch  # type: ignore[attr-defined]

    # ---- aborts ----

    def _collect_inflight_batches(self) -> list[Any]:
        return [self.running_batch]

    def abort_request(self, recv_req: Any) -> None:
        """Reach every batch in flight: upstream looks at the running and the current one."""
        with self._inflight_as("cur_batch"):
            super().abort_request(recv_req)

    def send_abort_output(self, abort_req: Any, req: Any) -> None:
        """Answer a request that ends outside the output stream."""
        self.send_to_tokenizer.send_output(abort_req, req)

    def _release_aborted_request(self, req: Any) -> None:
        """Only hierarchical caches keep something, and those are refused."""

    # ---- checks and reports ----

    def _check_with_suspended(self) -> None:
        with self._inflight_as("last_batch"):
            self.self_check_during_busy()

    @contextmanager
    def _inflight_as(self, name: str) -> Iterator[None]:
        """Show all requests in flight, the running ones aside, under one of upstream's names."""
        _running, *others = self._collect_inflight_batches()
        setattr(self, name, _Extending([req for batch in others for req in batch.reqs]))
        try:
            yield
        finally:
            setattr(self, name, None)

    def _record_scheduler_state_for_paused_engine(self) -> None:
        self.cancel_bubble_timer()

    def flush_cache(self, *, empty_cache: bool = True) -> Any:  # noqa: ARG002 (always empties)
        """Forget all cached prefixes."""
        return super().flush_cache()

    def get_internal_state(self, recv_req: Any) -> Any:
        """Report a copy: upstream hands out the settings' own dictionary, ours among them."""
        output = super().get_internal_state(recv_req)
        state = output.internal_state
        output.internal_state = {name: state[name] for name in state if name != "_flowprefill"}
        return output


class PrefillAdder(UpstreamAdder):
    """Admission that may leave a chunk waiting for memory."""

    def add_chunked_req(self, req: Any) -> Any:
        """Turn a chunk away that finds no memory: upstream would allocate and fail."""
        if self.rem_total_tokens > 0:
            return super().add_chunked_req(req)
        req.fill_ids = req.fill_ids[: len(req.prefix_indices)]  # what is computed, as before
        return req


class TorchNativeAttnBackend(UpstreamAttnBackend):
    """Takes arguments that this release never gives: no windows, no encoders."""

    def _run_sdpa_forward_extend(self, *args: Any, **kwargs: Any) -> Any:
        return super()._run_sdpa_forward_extend(*_without(args, 9), **_known(kwargs))

    def _run_sdpa_forward_decode(self, *args: Any, **kwargs: Any) -> Any:
        return super()._run_sdpa_forward_decode(*_without(args, 7), **_known(kwargs))


def _without(args: tuple[Any, ...], num_tensors: int) -> tuple[Any, ...]:
    """Drop the encoder lengths that come after the tensors."""
    return args[:num_tensors]


def _known(kwargs: dict[str, Any]) -> dict[str, Any]:
    later = ("is_cross_attn", "sliding_window_size", "encoder_lens")
    return {name: value for name, value in kwargs.items() if name not in later}


def make_abort_req(req: Any, finished_reason: Any = None) -> AbortReq:
    """Return the message that ends a request."""
    return AbortReq(rid=req.rid, finished_reason=finished_reason)


def release_uncached(req: Any, tree_cache: Any) -> None:
    """Give back a request's memory; what was computed since its last chunk is not cached."""
    release_kv_cache(req, tree_cache, is_insert=False)


def set_forward_context(_context: Any) -> None:
    """Do nothing: forward passes have no context outside their arguments."""


def forward_flags() -> dict[str, Any]:
    """Return no flags: layers keep none in globals."""
    return {}


def is_metrics_enabled(scheduler: Any) -> bool:
    """Tell whether this server collects metrics."""
    return bool(scheduler.enable_metrics)


def data_parallel_rank(scheduler: Any) -> int | None:
    """Return which of several data-parallel schedulers this is; None where there is one."""
    rank: int | None = scheduler.dp_rank
    return rank


def tile_flashinfer(_backend: Any) -> None:
    """Leave FlashInfer's attention whole: its backend writes KV in a way of its own here."""


def token_ids(tokens: Sequence[int]) -> list[int]:
    """Return token ids in the container that ``Req`` wants."""
    return list(tokens)


def _all_ids(req: Any) -> list[int]:
    return req.origin_input_ids + req.output_ids  # type: ignore[no-any-return]


def _rename() -> None:
    """Give 0.5.23's names to requests."""
    names: dict[str, Callable[[Any], Any]] = {
        "prefix_len": lambda req: len(req.prefix_indices),
        "extend_len": lambda req: req.extend_input_len,
        # Once decoding, nothing of the prompt is left to compute.
        "extend_end": lambda req: len(_all_ids(req) if req.decode_batch_idx else req.fill_ids),
        "full_untruncated_fill_ids": _all_ids,
        "kv": lambda req: req,  # the KV's own record later
    }
    for name, read in names.items():
        setattr(Req, name, property(read))
    Req.inflight_middle_chunks = property(
        lambda req: req.is_chunked, lambda req, value: setattr(req, "is_chunked", value)
    )


_rename()
