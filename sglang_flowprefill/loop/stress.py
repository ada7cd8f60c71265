"""``--flowprefill-stress``: the event loop with the least favourable decisions possible.

Every prefill is suspended at every boundary; whatever else is there runs in between: a new
batch, the prefill that has waited longest, a decode step. Losslessness tests compare its results
with uninterrupted ones.
"""

from typing import Any

from sglang_flowprefill.core import (
    Decision,
    DropBatches,
    EventKind,
    ResumeBatch,
    RunDecode,
    StartBatch,
)
from sglang_flowprefill.loop.event_loop import EventLoop


class StressEventLoop(EventLoop):
    """Takes turns among all work instead of following the policy."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._is_decode_turn = False
        self._line: list[int] = []

    def _collect_events(self) -> None:
        if self.cursors or self._engine.has_decode_work:
            self._events.post(EventKind.TIMER)
        super()._collect_events()

    def _run_round(self) -> Decision:
        decision = super()._run_round()
        self._is_decode_turn = not self._is_decode_turn
        if self._is_decode_turn and self._engine.has_decode_work:
            return RunDecode("stress: decode's turn")
        waiting = self._view().waiting
        if waiting and not self._is_blocked:
            return StartBatch((waiting[0],), "stress: whoever waits")
        runnable = [i for i, c in self.cursors.items() if not c.prefill.num_missing_tokens]
        if runnable and not isinstance(decision, DropBatches):
            return ResumeBatch(self._next_in_line(runnable), "stress: the longest unserved")
        return decision

    def _next_in_line(self, batch_ids: list[int]) -> int:
        """Return whose turn it is, and send it to the end of the line."""
        served = [batch_id for batch_id in self._line if batch_id in self.cursors]
        unserved = [batch_id for batch_id in self.cursors if batch_id not in served]
        batch_id = next(i for i in [*unserved, *served] if i in batch_ids)
        self._line = [i for i in served if i != batch_id] + [batch_id]
        return batch_id
