"""A scheduler that checks every one of its decisions against the promises, in other words."""

from dataclasses import dataclass, field

from sglang_flowprefill.core import PrefillDecider, ResumeBatch, RunDecode, StartBatch, Wait


@dataclass(frozen=True)
class CheckedScheduler(PrefillDecider):
    """Raises an ``AssertionError`` at the decision that breaks a promise.

    Attributes:
        started: Members of every batch started so far.
        started_s: When each of them started.
    """

    started: list = field(default_factory=list)
    started_s: list = field(default_factory=list)

    def decide(self, view, now_s):
        """Decide as always, then check."""
        decision = super().decide(view, now_s)
        assert decision == super().decide(view, now_s), "a round has no memory"
        assert len(view.batches) <= self.max_suspended + 1
        is_decode_due = view.decode is not None and now_s >= view.decode.due_s
        assert is_decode_due <= isinstance(decision, RunDecode)
        match decision:
            case StartBatch():
                self._check_start(decision, view, now_s)
            case ResumeBatch():
                self._check_resume(decision, view, now_s)
            case RunDecode():
                assert is_decode_due or not (view.waiting or view.batches)
            case Wait():
                assert not view.waiting
                assert not view.batches
                assert view.decode is None
        return decision

    def _check_start(self, decision, view, now_s):
        head = decision.requests[0]
        assert len(view.batches) <= self.max_suspended
        assert all(request in view.waiting for request in decision.requests)
        assert len(set(decision.requests)) == len(decision.requests)
        if len(decision.requests) > 1:
            num_tokens = sum(request.num_uncached_tokens for request in decision.requests)
            reserve_s = self.limits.reserve_fraction * head.slo.ttft_s
            assert num_tokens <= self.limits.max_tokens
            assert now_s + self.predict_s(decision.requests) <= head.deadline_s - reserve_s
        if view.current is not None:
            assert self._may_be_preempted(view.current)
        self._check_first(head, self.predict_s([head]), view, now_s)
        self.started.append(decision.requests)
        self.started_s.append(now_s)

    def _check_resume(self, decision, view, now_s):
        (chosen,) = (batch for batch in view.batches if batch.batch_id == decision.batch_id)
        member = min(chosen.requests, key=lambda r: self._rank(r, chosen.remaining_s, now_s))
        if chosen is not view.current:
            assert view.current is None or self._may_be_preempted(view.current)
            self._check_first(member, chosen.remaining_s, view, now_s)
        elif self._may_be_preempted(chosen) and not (
            0.0 < chosen.remaining_s < self.min_preemption_gain_s
        ):
            self._check_first(member, chosen.remaining_s, view, now_s, self.preemption_margin_s)

    def _may_be_preempted(self, batch):
        return self.policy.may_preempt and batch.num_preemptions < self.max_preemptions

    def _check_first(self, chosen, remaining_s, view, now_s, margin_s=0.0):
        """Nobody that may run is better, by more than the margin."""
        others = [(r, batch.remaining_s) for batch in view.batches for r in batch.requests]
        if len(view.batches) <= self.max_suspended:
            others += [(r, self.predict_s([r])) for r in view.waiting]
        rank = self._rank(chosen, remaining_s, now_s, margin_s)
        assert all(rank <= self._rank(r, seconds, now_s) for r, seconds in others)

    def _rank(self, request, remaining_s, now_s, margin_s=0.0):
        if not self.policy.may_preempt:
            return request.arrival_s
        arrival_s = request.arrival_s - margin_s
        remaining_s -= margin_s
        deadline_s = arrival_s + request.slo.ttft_s
        is_starving = now_s - arrival_s > self.policy.starvation_factor * request.slo.ttft_s
        is_feasible = deadline_s - now_s - remaining_s > 0.0
        return (not is_starving, not is_starving and not is_feasible, deadline_s)
