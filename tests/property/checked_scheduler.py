"""A scheduler that checks every one of its decisions against the promises, in other words."""

from dataclasses import dataclass, field

from sglang_flowprefill.core import PrefillDecider, ResumeBatch, RunDecode, StartBatch, Wait
from sglang_flowprefill.core.policy import MIN_PATIENCE_S


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
        alone_s = self.predict_s([head])
        if not self._is_lent(head, alone_s, view, now_s):
            self._check_first((head, alone_s, alone_s), view, now_s)
        self.started.append(decision.requests)
        self.started_s.append(now_s)

    def _check_resume(self, decision, view, now_s):
        (chosen,) = (batch for batch in view.batches if batch.batch_id == decision.batch_id)
        entries = [(r, chosen.remaining_s, chosen.predicted_s) for r in chosen.requests]
        entry = min(entries, key=lambda e: self._rank(e, now_s))
        if self._is_lent(entry[0], chosen.remaining_s, view, now_s):
            return
        if chosen is not view.current:
            assert view.current is None or self._may_be_preempted(view.current)
            self._check_first(entry, view, now_s)
        elif self._may_be_preempted(chosen) and not (
            0.0 < chosen.remaining_s < self.min_preemption_gain_s
        ):
            self._check_first(entry, view, now_s, self.preemption_margin_s)

    def _is_lent(self, late, remaining_s, view, now_s):
        """Whoever is late may run inside its share of the slack of the first that is not."""
        if self.policy.lent_share == 0.0 or late.deadline_s - remaining_s > now_s:
            return False
        first, seconds, _ = min(self._others(view), key=lambda e: self._rank(e, now_s))
        slack_s = first.deadline_s - seconds - now_s
        return 0.0 < remaining_s <= self.policy.lent_share * slack_s + 1e-9

    def _others(self, view):
        """Return everything that could run, with the seconds left and those of the whole."""
        found = [(r, b.remaining_s, b.predicted_s) for b in view.batches for r in b.requests]
        return found + [(r, self.predict_s([r]), self.predict_s([r])) for r in view.waiting]

    def _may_be_preempted(self, batch):
        return self.policy.may_preempt and batch.num_preemptions < self.max_preemptions

    def _check_first(self, chosen, view, now_s, margin_s=0.0):
        """Nobody that may run is better, by more than the margin."""
        others = self._others(view)
        if len(view.batches) > self.max_suspended:
            others = others[: sum(len(batch.requests) for batch in view.batches)]
        rank = self._rank(chosen, now_s, margin_s)
        assert all(rank <= self._rank(other, now_s) for other in others)

    def _rank(self, entry, now_s, margin_s=0.0):
        request, remaining_s, own_s = entry
        if not self.policy.may_preempt:
            return request.arrival_s
        arrival_s = request.arrival_s - margin_s
        deadline_s = arrival_s + request.slo.ttft_s
        patience_s = max(request.slo.ttft_s, remaining_s, own_s, MIN_PATIENCE_S)
        is_starving = now_s - arrival_s > self.policy.starvation_factor * patience_s
        is_feasible = deadline_s - now_s - (remaining_s - margin_s) > 0.0
        return (not is_starving, not is_starving and not is_feasible, deadline_s)
