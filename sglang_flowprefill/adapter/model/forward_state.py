"""What SGLang keeps in process-wide globals during a forward pass, moved at every switch.

Source: SGLang 0.5.23. Four kinds of state, each with its treatment:

* ``forward_context._current`` (``model_executor/forward_context.py``): swapped. A nested forward
  would otherwise inherit the suspended one's attention backend and MoE padding.
* The plain half of ``get_forward()`` (``runtime_context.py``, ``ForwardFlags._plain``): swapped.
  Layers set these flags around calls that contain boundaries.
* Attention metadata, per backend class: swapped where planning makes fresh objects, planned
  again on resume where plans are views of shared buffers, refused where neither is known.
* Static eager input buffers: off (``SGLANG_EAGER_INPUT_NO_COPY=1``), checked at start-up.

Not touched: grad mode (one per thread, the loop runs under no-grad), request rows, KV slots and
radix locks (the suspended batch owns them), ``contextvars`` (they follow the greenlet).
"""

from dataclasses import dataclass
from typing import Any

import torch

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.errors import CursorError, UnsupportedSGLangError

_sglang = releases.scheduling()

# Attributes that planning replaces by fresh objects: swapping the references is enough.
_SWAPPED_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "TorchNativeAttnBackend": ("forward_metadata", "swa_out_cache_loc"),
    "FlashAttentionBackend": ("forward_metadata", "forward_metadata_spec_decode_expand"),
}
# Backends whose plans are views of buffers that every forward shares, or lie in several attributes.
# Of them only the first two were run, with stand-ins for their kernels.
_REPLANNED = frozenset(
    {
        "FlashInferAttnBackend",
        "TritonAttnBackend",
        "FlashInferMLAAttnBackend",  # and so TRTLLMMLABackend
        "AiterAttnBackend",
    }
)


class AttentionState:
    """The attention backend's side of a switch.

    Raises:
        UnsupportedSGLangError: Nothing is known about this backend class.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        names = [cls.__name__ for cls in type(backend).__mro__]
        known = next((n for n in names if n in _SWAPPED_ATTRIBUTES or n in _REPLANNED), None)
        if known is None:
            supported = ", ".join(sorted([*_SWAPPED_ATTRIBUTES, *_REPLANNED]))
            raise UnsupportedSGLangError(
                f"attention backend {names[0]} is not known to survive suspension; choose one of "
                f"{supported} (--attention-backend torch_native, fa3, flashinfer or triton)"
            )
        self._swapped = _SWAPPED_ATTRIBUTES.get(known, ())
        self._replans = known in _REPLANNED
        self._planned_batch: Any = None
        if self._replans:
            self._remember_plans()

    def capture(self) -> Any:
        """Return what ``install`` needs to bring this moment's metadata back."""
        if self._replans:
            return self._planned_batch
        return [getattr(self._backend, name, None) for name in self._swapped]

    def install(self, captured: Any) -> None:
        """Bring captured metadata back, planning again if the backend shares its buffers."""
        if not self._replans:
            for name, value in zip(self._swapped, captured, strict=True):
                setattr(self._backend, name, value)
        elif captured is not None:
            self._backend.init_forward_metadata(captured)

    def _remember_plans(self) -> None:
        plan = self._backend.init_forward_metadata

        def remembering_plan(forward_batch: Any) -> Any:
            self._planned_batch = forward_batch
            return plan(forward_batch)

        self._backend.init_forward_metadata = remembering_plan


@dataclass(frozen=True, slots=True)
class _Globals:
    """One side's process-wide state."""

    context: Any
    flags: dict[str, Any]
    attention: Any


class ForwardState:
    """``executor.SwitchState`` of one SGLang forward pass.

    Args:
        attention: State of the model's attention backend, shared by all forwards.
    """

    def __init__(self, attention: AttentionState) -> None:
        self._attention = attention
        self._scheduler_side: _Globals | None = None
        self._cursor_side: _Globals | None = None

    def enter(self) -> None:
        """Put the cursor's globals in place; at first entry it starts from a clean context."""
        self._scheduler_side = self._capture()
        if self._cursor_side is not None:
            self._install(self._cursor_side)
            self._attention.install(self._cursor_side.attention)

    def leave(self) -> None:
        """Take the cursor's globals out and put the scheduler's back."""
        assert self._scheduler_side is not None
        self._cursor_side = self._capture()
        # Attention metadata is not put back: the next forward plans its own before using it.
        self._install(self._scheduler_side)

    def _capture(self) -> _Globals:
        context = _sglang.set_forward_context(None)
        return _Globals(context, dict(_sglang.forward_flags()), self._attention.capture())

    @staticmethod
    def _install(side: _Globals) -> None:
        _sglang.set_forward_context(side.context)
        _sglang.forward_flags().update(side.flags)


class BatchFingerprint:
    """Debug check: a suspended batch's tensors and request rows stay as they were.

    Args:
        batch: SGLang's ``ScheduleBatch``.
        req_to_token: ``[num_rows, max_context_len]`` map of positions to KV slots.
    """

    def __init__(self, batch: Any, req_to_token: torch.Tensor) -> None:
        self._batch = batch
        self._req_to_token = req_to_token
        self._expected = self._take()

    def verify(self) -> None:
        """Compare with the state at suspension.

        Raises:
            CursorError: Something changed.
        """
        if (found := self._take()) != self._expected:
            rids = [req.rid for req in self._batch.reqs]
            raise CursorError(
                f"the inputs of suspended prefill {rids} changed: {self._expected} became {found}"
            )

    def _take(self) -> tuple[Any, ...]:
        tensors = (self._batch.input_ids, self._batch.out_cache_loc, self._batch.seq_lens)
        checksums = [(t.data_ptr(), int(t.sum())) for t in tensors if t is not None]
        rows = [
            int(self._req_to_token[req.kv.req_pool_idx, : req.extend_end].sum())
            for req in self._batch.reqs
        ]
        return (*checksums, *rows)
