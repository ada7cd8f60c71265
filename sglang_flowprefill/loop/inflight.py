"""One prefill in flight: SGLang's batch, the policy's batch and the suspended stack together.

A prompt longer than a chunk runs as several forward passes, one after the other, under one
cursor. Between two of them the cursor stands suspended like at any boundary, only without a
stack; its KV so far is in the prefix cache, and the next chunk gets memory when it starts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sglang_flowprefill.adapter.model.forward_state import BatchFingerprint
from sglang_flowprefill.core import PrefillBatch, PrefillRequest
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.executor import Cursor


@dataclass(slots=True, eq=False)
class OperatorCursor:
    """A prefill batch between its start and its result.

    Attributes:
        prefill: The policy's view: state, time run, members.
        reqs: SGLang's requests that are not through their prefill yet.
        batch: SGLang's ``ScheduleBatch`` of the current or last forward pass. It owns KV slots,
            request rows and radix locks.
        execution: The current forward pass; None between two chunks.
        started_as: The policy's view of the members at the start, before any chunk was cached.
        rest: The request of which this forward pass computes a chunk that is not its last.
        num_forwards: Forward passes started.
    """

    prefill: PrefillBatch
    reqs: list[Any]
    batch: Any
    execution: Cursor[Any] | None
    started_as: tuple[PrefillRequest, ...]
    rest: Any = None
    num_forwards: int = 1
    _fingerprint: BatchFingerprint | None = field(default=None)

    def __post_init__(self) -> None:
        self.rest = self.batch.chunked_req

    def start_forward(self, batch: Any, execution: Cursor[Any]) -> None:
        """Go on with the next chunk."""
        self.batch, self.execution, self.rest = batch, execution, batch.chunked_req
        self.num_forwards += 1

    def end_forward(self) -> Any:
        """Return what the forward pass returned. Only what needs another one stays a member."""
        assert self.execution is not None
        result = self.execution.result
        self.reqs = [] if self.rest is None else [self.rest]
        self.execution = self._fingerprint = None
        return result

    def run_slice(self, clock: Callable[[], float], req_to_token: Any, *, check: bool) -> bool:
        """Run until the forward pass ends or an event wants the scheduler.

        Args:
            clock: The scheduler's time in seconds.
            req_to_token: ``[num_rows, max_context_len]``, for the debug check.
            check: Verify that nothing changed while suspended.

        Returns:
            True if the forward pass has ended.
        """
        assert self.execution is not None
        if self._fingerprint is not None:
            self._fingerprint.verify()
        self.prefill.apply(BatchChange.RESUME, clock())
        has_ended = self.execution.resume()
        is_finished = has_ended and self.rest is None
        self.prefill.apply(BatchChange.FINISH if is_finished else BatchChange.YIELD, clock())
        if check and not has_ended:
            self._fingerprint = BatchFingerprint(self.batch, req_to_token)
        return has_ended

    def cancel(self, now_s: float) -> None:
        """Abandon the forward pass. The caller releases what the requests own."""
        if self.execution is not None:
            self.execution.cancel()
        self.prefill.apply(BatchChange.CANCEL, now_s)
