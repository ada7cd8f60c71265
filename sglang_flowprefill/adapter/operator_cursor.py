"""One prefill in flight: SGLang's batch, the policy's batch and the suspended stack together."""

from dataclasses import dataclass, field
from typing import Any

from sglang_flowprefill.adapter.forward_state import BatchFingerprint
from sglang_flowprefill.core import PrefillBatch
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.executor import Cursor


@dataclass(slots=True, eq=False)
class OperatorCursor:
    """A prefill batch between its start and its result.

    Attributes:
        prefill: The policy's view: state, time run, members.
        batch: SGLang's ``ScheduleBatch``. It owns KV slots, request rows and radix locks.
        execution: The forward pass.
    """

    prefill: PrefillBatch
    batch: Any
    execution: Cursor[Any]
    _fingerprint: BatchFingerprint | None = field(default=None)

    @property
    def reqs(self) -> list[Any]:
        """SGLang's requests in this batch."""
        reqs: list[Any] = self.batch.reqs
        return reqs

    def run_slice(self, clock: Any, req_to_token: Any, *, check: bool) -> bool:
        """Run until the end or until an event wants the scheduler.

        Args:
            clock: Callable returning the scheduler's time in seconds.
            req_to_token: ``[num_rows, max_context_len]``, for the debug check.
            check: Verify that nothing changed while suspended.

        Returns:
            True if the forward pass has ended.
        """
        if self._fingerprint is not None:
            self._fingerprint.verify()
        self.prefill.apply(BatchChange.RESUME, clock())
        is_finished = self.execution.resume()
        self.prefill.apply(BatchChange.FINISH if is_finished else BatchChange.YIELD, clock())
        if check and not is_finished:
            self._fingerprint = BatchFingerprint(self.batch, req_to_token)
        return is_finished

    def cancel(self, now_s: float) -> None:
        """Abandon the forward pass. The caller releases what the batch owns."""
        self.execution.cancel()
        self.prefill.apply(BatchChange.CANCEL, now_s)
