"""``--flowprefill-stress``: the least favourable decisions possible, from an injected decider.

Every prefill is suspended at every boundary; whatever else is there runs in between: a new
batch, the prefill that has waited longest, a decode step. Losslessness tests compare its results
with uninterrupted ones.
"""

from collections.abc import Sequence
from dataclasses import replace

from sglang_flowprefill.core import (
    Decision,
    DropBatches,
    Observation,
    PredictionError,
    PrefillDecider,
    ResumeBatch,
    RoundView,
    RunDecode,
    StartBatch,
)
from sglang_flowprefill.loop.event_loop import Decider


class StressDecider:
    """Takes turns among all work instead of following the policy.

    Each decision to run a prefill asks for a review at once, so that the loop's timer interrupts
    it at its next boundary.

    Args:
        decider: The policy; it is asked for what is no matter of taste: drops, costs, learning.
    """

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        self._is_decode_turn = False
        self._line: list[int] = []

    @property
    def present(self) -> PrefillDecider:
        """The policy of this moment."""
        return self._decider.present

    def learn(self, observation: Observation) -> PredictionError | None:
        """Let the policy learn."""
        return self._decider.learn(observation)

    def decide(self, view: RoundView, now_s: float) -> Decision:
        """Return whose turn it is."""
        own = self._decider.decide(view, now_s)
        self._is_decode_turn = not self._is_decode_turn
        if self._is_decode_turn and view.decode is not None:
            return RunDecode("stress: decode's turn")
        is_blocked = view.blocked is not None or any(b.num_missing_tokens for b in view.batches)
        if view.waiting and not is_blocked:
            return StartBatch((view.waiting[0],), "stress: whoever waits", now_s)
        runnable = [b.batch_id for b in view.batches if not b.num_missing_tokens]
        if runnable and not isinstance(own, DropBatches):
            return ResumeBatch(
                self._next_in_line(view, runnable), "stress: the longest unserved", now_s
            )
        return replace(own, review_s=now_s) if isinstance(own, StartBatch | ResumeBatch) else own

    def _next_in_line(self, view: RoundView, runnable: Sequence[int]) -> int:
        """Return whose turn it is, and send it to the end of the line."""
        present = [batch.batch_id for batch in view.batches]
        served = [batch_id for batch_id in self._line if batch_id in present]
        unserved = [batch_id for batch_id in present if batch_id not in served]
        batch_id = next(i for i in [*unserved, *served] if i in runnable)
        self._line = [i for i in served if i != batch_id] + [batch_id]
        return batch_id
