"""The life of one prefill batch.

    READY --resume--> RUNNING --finish--> FINISHED
                      |     ^
                    yield  resume
                      v     |
                     SUSPENDED
    READY, SUSPENDED --cancel--> CANCELLED
    RUNNING --fail--> FAILED

A prompt that is prefilled in several forward passes, one chunk after the other, is still one
batch: it runs, and stands suspended between its chunks as between two operators. There it may
find no memory for its next chunk; ``num_missing_tokens`` says so.

``_NEXT_STATE`` below is the only statement of what is legal; every change goes through
``PrefillBatch.apply`` and is stamped with its time, so ``run_s`` is exact.
"""

import math
from dataclasses import dataclass
from enum import Enum

from sglang_flowprefill.core.request import PrefillRequest
from sglang_flowprefill.errors import IllegalTransitionError


class BatchState(Enum):
    """Where a batch stands."""

    READY = "ready"
    RUNNING = "running"
    SUSPENDED = "suspended"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class BatchChange(Enum):
    """What may be done to a batch."""

    RESUME = "resume"
    YIELD = "yield"
    FINISH = "finish"
    CANCEL = "cancel"
    FAIL = "fail"


_NEXT_STATE = {
    (BatchState.READY, BatchChange.RESUME): BatchState.RUNNING,
    (BatchState.SUSPENDED, BatchChange.RESUME): BatchState.RUNNING,
    (BatchState.RUNNING, BatchChange.YIELD): BatchState.SUSPENDED,
    (BatchState.RUNNING, BatchChange.FINISH): BatchState.FINISHED,
    (BatchState.RUNNING, BatchChange.FAIL): BatchState.FAILED,
    (BatchState.READY, BatchChange.CANCEL): BatchState.CANCELLED,
    (BatchState.SUSPENDED, BatchChange.CANCEL): BatchState.CANCELLED,
}


@dataclass(slots=True, eq=False)
class PrefillBatch:
    """Requests whose prefill runs as one forward pass, or one prompt's chunks in sequence.

    Attributes:
        batch_id: Unique over the life of the scheduler.
        requests: The members; the first is the head that the policy chose.
        predicted_s: Predicted seconds of the whole prefill.
        run_s: Seconds it has run so far, suspensions excluded.
        num_preemptions: How often other work was put in front of it.
        num_kv_tokens: KV slots that it holds now, and would give back if it were dropped.
        held_bytes: Memory of the activations that it keeps while it stands suspended.
        release_s: Expected seconds from its end until its KV comes free: its members' decoding.
        num_missing_tokens: KV slots that its next chunk lacks. It cannot run while there are any.
        changed_s: When it came into its present state.
    """

    batch_id: int
    requests: tuple[PrefillRequest, ...]
    predicted_s: float
    state: BatchState = BatchState.READY
    run_s: float = 0.0
    num_preemptions: int = 0
    num_kv_tokens: int = 0
    held_bytes: int = 0
    release_s: float = math.inf
    num_missing_tokens: int = 0
    changed_s: float = 0.0

    @property
    def remaining_s(self) -> float:
        """Predicted seconds still to run; zero once it has run longer than predicted."""
        return max(self.predicted_s - self.run_s, 0.0)

    @property
    def has_outrun_prediction(self) -> bool:
        """Tell whether it has run for as long as predicted and not ended: nobody knows when."""
        return self.run_s >= self.predicted_s

    @property
    def num_uncached_tokens(self) -> int:
        """Tokens that the prefill computes."""
        return sum(request.num_uncached_tokens for request in self.requests)

    def run_s_at(self, now_s: float) -> float:
        """Return the seconds it has run by now, those of the present slice included."""
        is_running = self.state is BatchState.RUNNING
        return self.run_s + (now_s - self.changed_s if is_running else 0.0)

    def apply(self, change: BatchChange, now_s: float) -> None:
        """Change the state and account the time.

        Raises:
            IllegalTransitionError: The table does not allow it.
        """
        key = (self.state, change)
        if key not in _NEXT_STATE:
            raise IllegalTransitionError(self.batch_id, self.state.value, change.value)
        if self.state is BatchState.RUNNING:
            self.run_s += now_s - self.changed_s
        self.state = _NEXT_STATE[key]
        self.changed_s = now_s
