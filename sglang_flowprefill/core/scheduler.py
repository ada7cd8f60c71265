"""One scheduling round: from what is waiting, suspended and decoding to one decision.

Owns no queue and no state. The caller describes the world in a ``SchedulerView``; nothing can
therefore be lost, forgotten or doubled here. The order of the questions is the policy:

1. Is a decode step due?                          -> run it
2. Is there anything to prefill?                  -> if not: decode, else wait
3. Which candidate is first in the policy's order?
4. Would it have to preempt, and is that worth it?
5. Is it a batch already (resume) or a waiting request (start, with passengers)?
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_flowprefill.core.batch import PrefillBatch
from sglang_flowprefill.core.batching import BatchLimits, select_batch
from sglang_flowprefill.core.decision import Decision, ResumeBatch, RunDecode, StartBatch, Wait
from sglang_flowprefill.core.policy import Candidate, Policy, PolicyKey
from sglang_flowprefill.core.predictor import PrefillCost
from sglang_flowprefill.core.request import PrefillRequest


@dataclass(frozen=True, slots=True)
class DecodeView:
    """Requests past their prefill that want their next token.

    Attributes:
        due_s: When the next decode step should run at the latest.
    """

    due_s: float


@dataclass(frozen=True, slots=True)
class SchedulerView:
    """Everything that a round may look at.

    Attributes:
        waiting: Requests not yet in a batch and not known to be blocked by memory.
        batches: Batches that are ready or suspended.
        current: The one of ``batches`` that ran last, if it has not ended.
        decode: The running requests, if any.
        can_start: False while no new batch may be formed (no memory, too many suspended).
    """

    waiting: Sequence[PrefillRequest] = ()
    batches: Sequence[PrefillBatch] = ()
    current: PrefillBatch | None = None
    decode: DecodeView | None = None
    can_start: bool = True


@dataclass(frozen=True, slots=True)
class PrefillScheduler:
    """The policy with its parameters.

    Attributes:
        policy: Order among candidates.
        cost: Predictor of prefill time.
        limits: Bounds of a batch.
        max_suspended: No new batch is started over this many unfinished ones.
        min_preemption_gain_s: A current batch with less predicted time left is not preempted.
    """

    policy: Policy
    cost: PrefillCost
    limits: BatchLimits
    max_suspended: int = 16
    min_preemption_gain_s: float = 0.0

    def decide(self, view: SchedulerView, now_s: float) -> Decision:
        """Decide what runs next. Pure: equal arguments give equal decisions."""
        if view.decode is not None and now_s >= view.decode.due_s:
            return RunDecode("decode step due")
        best_batch = min(view.batches, key=lambda b: self._batch_key(b, now_s), default=None)
        head = self._first_waiting(view, best_batch, now_s)
        if head is None and best_batch is None:
            return self._without_prefill(view)
        keeps = view.current
        if keeps is not None and not self._may_preempt(keeps, head, best_batch, now_s):
            return ResumeBatch(keeps.batch_id, "current prefill goes on")
        if head is not None:
            return self._start(head, view, now_s)
        assert best_batch is not None
        return ResumeBatch(best_batch.batch_id, "first in policy order")

    def predict_s(self, requests: Sequence[PrefillRequest]) -> float:
        """Predict the seconds of one forward pass over these requests."""
        return self.cost.predict_s(requests)

    def _without_prefill(self, view: SchedulerView) -> Decision:
        if view.decode is not None:
            return RunDecode("nothing to prefill")
        return Wait("nothing to do" if not view.waiting else "waiting requests are blocked")

    def _first_waiting(
        self, view: SchedulerView, best_batch: PrefillBatch | None, now_s: float
    ) -> PrefillRequest | None:
        """Return the waiting request that goes before every batch, if there is one."""
        if not view.can_start or not view.waiting or len(view.batches) > self.max_suspended:
            return None
        head = min(view.waiting, key=lambda r: self._request_key(r, now_s))
        if best_batch is None:
            return head
        is_first = self._request_key(head, now_s) < self._batch_key(best_batch, now_s)
        return head if is_first else None

    def _may_preempt(
        self,
        current: PrefillBatch,
        head: PrefillRequest | None,
        best_batch: PrefillBatch | None,
        now_s: float,
    ) -> bool:
        if head is None and best_batch is current:
            return False
        if not self.policy.may_preempt or self._is_nearly_done(current):
            return False
        current_key = self._batch_key(current, now_s)
        if head is not None:
            return self._request_key(head, now_s) < current_key
        assert best_batch is not None
        return self._batch_key(best_batch, now_s) < current_key

    def _is_nearly_done(self, batch: PrefillBatch) -> bool:
        """By the prediction. One that has outrun it may run for long yet."""
        return 0.0 < batch.remaining_s < self.min_preemption_gain_s

    def _start(self, head: PrefillRequest, view: SchedulerView, now_s: float) -> StartBatch:
        others = sorted(
            (request for request in view.waiting if request is not head),
            key=lambda r: self._request_key(r, now_s),
        )
        members = select_batch(head, others, now_s, self.cost, self.limits)
        reason = "first in policy order" if view.current is None else "preempts the current prefill"
        return StartBatch(members, reason)

    def _request_key(self, request: PrefillRequest, now_s: float) -> PolicyKey:
        return self._key(request, self.cost.predict_s((request,)), now_s)

    def _batch_key(self, batch: PrefillBatch, now_s: float) -> PolicyKey:
        """Key of the member that is first in order: the batch is as urgent as that one."""
        remaining_s = batch.remaining_s
        return min(self._key(request, remaining_s, now_s) for request in batch.requests)

    def _key(self, request: PrefillRequest, remaining_s: float, now_s: float) -> PolicyKey:
        candidate = Candidate(request.arrival_s, request.slo.ttft_s, remaining_s)
        return self.policy.key(candidate, now_s)
