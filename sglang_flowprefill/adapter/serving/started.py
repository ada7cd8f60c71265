"""One prefill that SGLang has started: its batch, its requests and its suspended stack together.

A prompt longer than a chunk runs as several forward passes, one after the other. Between two of
them there is no stack; its KV so far is in the prefix cache, and the next chunk gets memory when
it starts.
"""

from collections.abc import Sequence
from typing import Any

from sglang_flowprefill.adapter.model.forward_state import BatchFingerprint
from sglang_flowprefill.adapter.serving.requests import prefill_request
from sglang_flowprefill.core import PrefillRequest
from sglang_flowprefill.executor import Cursor


class SGLangPrefill:
    """``loop.StartedPrefill`` over SGLang's objects.

    Args:
        batch: SGLang's ``ScheduleBatch`` of the first forward pass, with its memory.
        execution: That forward pass.
        activation_bytes: What a token of the running chunk holds beside its KV, in bytes.

    Attributes:
        reqs: SGLang's requests that are not through their prefill yet.
        batch: ``ScheduleBatch`` of the current or last forward pass. It owns KV slots, request
            rows and radix locks.
        execution: The current forward pass; None between two chunks.
        rest: The request of which this forward pass computes a chunk that is not its last.
        num_kv_tokens: KV slots that dropping it would give back.
        held_bytes: Bytes of activations that it holds while it stands suspended.
        max_new_tokens: Longest generation that a member may ask for, in tokens.
        fingerprint: What the batch looked like when it was suspended, where that is checked.
    """

    def __init__(self, batch: Any, execution: Cursor[Any], activation_bytes: float) -> None:
        self.reqs: list[Any] = list(batch.reqs)
        self.batch = batch
        self.execution: Cursor[Any] | None = execution
        self.rest = batch.chunked_req
        self.fingerprint: BatchFingerprint | None = None
        num_tokens = sum(request.num_uncached_tokens for request in self.requests)
        num_active = sum(req.extend_len for req in self.reqs)
        self.num_kv_tokens = num_tokens
        self.held_bytes = int(num_active * activation_bytes)
        self.max_new_tokens = max(req.sampling_params.max_new_tokens for req in self.reqs)

    @property
    def requests(self) -> tuple[PrefillRequest, ...]:
        """Members that are not through their prefill, by what is left of them."""
        return tuple(prefill_request(req) for req in self.reqs)

    @property
    def is_between_forwards(self) -> bool:
        """True while the next chunk has no memory yet."""
        return self.execution is None

    @property
    def has_more_chunks(self) -> bool:
        """True if this forward pass is not the last."""
        return self.rest is not None

    @property
    def is_aborted(self) -> bool:
        """True once every member has been aborted."""
        return all(req.to_finish is not None for req in self.reqs)

    @property
    def num_boundaries(self) -> int:
        """Operator boundaries passed in this forward pass."""
        return 0 if self.execution is None else self.execution.num_boundaries

    def start_forward(self, batch: Any, execution: Cursor[Any]) -> None:
        """Go on with the next chunk."""
        self.batch, self.execution, self.rest = batch, execution, batch.chunked_req

    def end_forward(self) -> Any:
        """Return what the forward pass returned. Only what needs another one stays a member."""
        assert self.execution is not None
        result = self.execution.result
        self.reqs = [] if self.rest is None else [self.rest]
        self.execution = self.fingerprint = None
        return result

    def cancel(self) -> Sequence[Any]:
        """Abandon the forward pass; return the requests, whose memory the caller gives back."""
        if self.execution is not None:
            self.execution.cancel()
        return list(self.reqs)
