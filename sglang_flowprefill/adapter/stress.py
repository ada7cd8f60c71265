"""``--flowprefill-stress``: the event loop with the least favourable decisions possible.

Every prefill is suspended at every boundary; whatever else is there runs in between: a new
batch, the prefill that has waited longest, a decode step. Losslessness tests compare its results
with uninterrupted ones.
"""

from typing import Any

from sglang_flowprefill.adapter.event_loop import EventLoop
from sglang_flowprefill.core import (
    Decision,
    DropBatches,
    EventKind,
    ResumeBatch,
    RunDecode,
    StartBatch,
)


class StressEventLoop(EventLoop):
    """Takes turns among all work instead of following the policy."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._is_decode_turn = False

    def _collect_events(self) -> None:
        super()._collect_events()
        if self.cursors or self._engine.has_decode_work:
            self._note(EventKind.TIMER)

    def _run_round(self) -> Decision:
        decision = super()._run_round()
        self._is_decode_turn = not self._is_decode_turn
        if self._is_decode_turn and self._engine.has_decode_work:
            return RunDecode("stress: decode's turn")
        waiting = self._view().waiting
        if waiting and not self._is_blocked:
            return StartBatch((waiting[0],), "stress: whoever waits")
        runnable = [c.prefill for c in self.cursors.values() if not c.prefill.num_missing_tokens]
        if runnable and not isinstance(decision, DropBatches):
            batch_id = runnable[0].batch_id
            self.cursors[batch_id] = self.cursors.pop(batch_id)  # to the end of the line
            return ResumeBatch(batch_id, "stress: the longest unserved")
        return decision
