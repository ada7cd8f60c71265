"""One scheduling round: from what is waiting, suspended and decoding to one decision.

Owns no queue and no state. The caller describes the world in a ``RoundView``; nothing can
therefore be lost, forgotten or doubled here. The order of the questions is the policy:

1. Is a decode step due, and can it not wait?            -> run it
2. Who is first in the policy's order?                   -> nobody: decode, else wait
   Does somebody who is late fit into the slack of that one?
3. Would it have to preempt, and is that worth it?       -> if not, the current one goes on
4. Is there memory for it?                               -> if not, make room or run the next
5. Is it a batch already (resume) or a waiting request (start, with passengers)?

The engine alone knows memory. When it finds none for a decision, it says so in the view
(``RoundView.blocked``, ``PrefillBatch.num_missing_tokens``) and asks again, until memory may
have come free.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sglang_flowprefill.core.batch import PrefillBatch
from sglang_flowprefill.core.batching import (
    BatchLimits,
    Passengers,
    can_take_passengers,
    select_batch,
)
from sglang_flowprefill.core.candidates import CandidateMemo
from sglang_flowprefill.core.decision import (
    STUCK,
    TIGHTER_DEADLINE,
    Decision,
    DropBatches,
    ResumeBatch,
    RunDecode,
    StartBatch,
    Wait,
)
from sglang_flowprefill.core.memory import (
    HeldBytes,
    RankedBatch,
    Shortage,
    choose_victims,
    expected_wait_s,
)
from sglang_flowprefill.core.policy import Candidate, Policy, PolicyKey
from sglang_flowprefill.core.predictor import PrefillCost
from sglang_flowprefill.core.request import PrefillRequest
from sglang_flowprefill.core.view import RoundView

_NOTHING_LACKS = Shortage()


@dataclass(frozen=True, slots=True)
class _Contender:
    """Something that could run next: a waiting request, or a started batch.

    Attributes:
        key: Its place in the policy's order.
        candidate: What the policy sees of it.
        batch: The batch, or None for a waiting request.
        index: Of the waiting request.
        shortage: The memory that it lacks, as far as the engine told.
    """

    key: PolicyKey
    candidate: Candidate
    batch: PrefillBatch | None = None
    index: int = -1
    shortage: Shortage = _NOTHING_LACKS


@dataclass(frozen=True, slots=True)
class _Loan:
    """What the first feasible candidate can lend to somebody who is late.

    Attributes:
        whole_s: Length of a prefill that it waits for to its end.
        is_open: True while it has not waited for its share of the slack that it came with: until
            then a prefill of any length may run, if nobody asked for its objective.
        review_s: When to look again.
    """

    whole_s: float
    is_open: bool
    review_s: float

    @classmethod
    def of(cls, first: Candidate, share: float, now_s: float) -> "_Loan":
        """Return what a candidate can lend; share 0 is nothing."""
        slack_s = first.slack_s(now_s)
        if share <= 0.0 or slack_s <= 0.0:
            return cls(0.0, is_open=False, review_s=now_s)
        whole_s = share * slack_s
        open_s = slack_s - (1.0 - share) * (first.ttft_slo_s - first.remaining_s)
        return cls(whole_s, open_s > 0.0, now_s + max(whole_s, open_s))

    def covers(self, late: Candidate) -> bool:
        """Tell whether somebody who is late may run before the lender."""
        if late.is_degraded:
            return False
        return late.remaining_s < self.whole_s or (self.is_open and late.is_soft)


@dataclass(frozen=True, slots=True)
class _Round:
    """What one round has worked out.

    Attributes:
        keys: Of the waiting requests.
        ranked: All batches.
        runnable: Those that have the memory to go on.
        head: The first waiting request.
        best: The first of ``runnable``.
        blocked: The first, of waiting requests and batches, that is known to lack memory.
    """

    keys: Sequence[PolicyKey]
    ranked: Sequence[RankedBatch]
    runnable: Sequence[RankedBatch]
    head: _Contender | None
    best: _Contender | None
    blocked: _Contender | None

    @property
    def first(self) -> _Contender | None:
        """Whoever is first in the policy's order. Started batches win ties, then blocked ones."""
        contenders = [c for c in (self.best, self.blocked, self.head) if c is not None]
        return min(contenders, key=lambda c: c.key, default=None)


@dataclass(frozen=True, slots=True)
class PrefillDecider:
    """The policy with its parameters.

    Attributes:
        policy: Order among candidates.
        cost: Predictor of prefill time.
        limits: Bounds of a batch.
        max_suspended: No new batch is started over this many unfinished ones.
        min_preemption_gain_s: A current batch with less predicted time left is not preempted.
        max_suspended_bytes: Suspended batches may hold this much memory for their activations;
            one that holds more alone may stand suspended all the same.
        max_restarts: A request is dropped for memory at most this often; then it is immune.
            With 0 nothing is ever dropped.
        max_preemptions: A batch is preempted at most this often; then it runs to its end.
        preemption_margin_s: A batch is preempted only by what would go before it even if it had
            come, and begun, this much earlier.
        lazy_fraction: From this share of its predicted time on, a batch is preempted only by what
            cannot afford to wait for its end.
    """

    policy: Policy
    cost: PrefillCost
    limits: BatchLimits
    max_suspended: int = 16
    min_preemption_gain_s: float = 0.0
    max_suspended_bytes: float = math.inf
    max_restarts: int = 0
    max_preemptions: float = math.inf
    preemption_margin_s: float = 0.0
    lazy_fraction: float = 1.0
    _memo: CandidateMemo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_memo", CandidateMemo(self.candidates))

    def decide(self, view: RoundView, now_s: float) -> Decision:
        """Decide what runs next. Pure: equal arguments give equal decisions."""
        decode = view.decode
        if decode is None or now_s < decode.due_s:
            return self._decide_prefill(view, now_s)
        if decode.step_s > 0.0 and now_s < decode.limit_s:
            decision = self._decide_prefill(view, now_s)
            if (
                isinstance(decision, StartBatch | ResumeBatch)
                and 0.0 < self._slack_s(decision, view, now_s) <= decode.step_s
            ):
                return replace(decision, review_s=min(decision.review_s, decode.limit_s))
        return RunDecode("decode step due")

    def predict_s(self, requests: Sequence[PrefillRequest]) -> float:
        """Predict the seconds of one forward pass over these requests."""
        return self.cost.predict_s(requests)

    def candidates(self, requests: Sequence[PrefillRequest]) -> list[Candidate]:
        """Return what the policy sees of requests that wait for their prefill."""
        return [
            Candidate(
                request.arrival_s,
                request.slo.ttft_s,
                alone_s,
                request.is_degraded,
                is_soft=request.slo.is_soft,
            )
            for request, alone_s in zip(requests, self.cost.predict_each_s(requests), strict=True)
        ]

    def remembered(self, waiting: Sequence[PrefillRequest]) -> list[Candidate]:
        """Return the candidates of the whole queue; those that were seen before are not made."""
        return self._memo.of(waiting)

    def ranked(self, view: RoundView, now_s: float) -> list[RankedBatch]:
        """Return the started batches with their places in the policy's order."""
        ranked = []
        for batch in view.batches:
            candidate = self._batch_candidate(batch, now_s)
            ranked.append(RankedBatch(self.policy.key(candidate, now_s), candidate, batch))
        return ranked

    def must_reserve_all(self, request: PrefillRequest) -> bool:
        """Tell whether a request may start only once its whole need of memory is free.

        True once it cannot be dropped any more: only then can nobody get stuck behind it.
        """
        return request.num_restarts >= self.max_restarts

    def choose_victim(self, view: RoundView, now_s: float) -> int | None:
        """Choose the batch that gives way when *decode* needs memory: the last in the order.

        Returns:
            Its id, or None if all are immune; then the engine has to retract running requests.
        """
        droppable = [r for r in self.ranked(view, now_s) if not self._is_immune(r.batch)]
        last = max(droppable, key=lambda r: (r.key, -r.batch.run_s), default=None)
        return None if last is None else last.batch.batch_id

    def _slack_s(self, decision: StartBatch | ResumeBatch, view: RoundView, now_s: float) -> float:
        """Return how long the most urgent first token that a decision brings could still wait."""
        if isinstance(decision, StartBatch):
            return decision.requests[0].deadline_s - now_s - self.predict_s(decision.requests)
        (batch,) = (b for b in view.batches if b.batch_id == decision.batch_id)
        return self._batch_candidate(batch, now_s).slack_s(now_s)

    def _decide_prefill(self, view: RoundView, now_s: float) -> Decision:
        """Decide as if no decode step were due."""
        found = self._look(view, now_s)
        first = found.first
        if first is None:
            return self._without_prefill(view)
        loan = _Loan.of(first.candidate, self.policy.lent_share, now_s)
        late = self._late_within_slack(loan, first, found, view, now_s)
        if late is None:
            return self._decide_for(first, found, view, now_s)
        if late.batch is None:
            found = replace(found, head=late)
        decision = self._decide_for(late, found, view, now_s)
        if isinstance(decision, StartBatch | ResumeBatch):
            return replace(decision, review_s=min(decision.review_s, loan.review_s))
        return decision

    def _decide_for(
        self, first: _Contender, found: _Round, view: RoundView, now_s: float
    ) -> Decision:
        """Decide, given who should run."""
        current = _runnable_current(view)
        if current is not None and not self._may_preempt(current, first, now_s):
            return ResumeBatch(current.batch_id, "current prefill goes on")
        if first.batch is None and first is found.head:
            first = self._within_budget(first, view)
        if not first.shortage.is_covered:
            return self._without_room(first, found, view, now_s)
        if first.batch is not None:
            return ResumeBatch(first.batch.batch_id, "first in policy order")
        return self._start(first, found, view, now_s)

    # ---- who is first ----

    def _look(self, view: RoundView, now_s: float) -> _Round:
        ranked = self.ranked(view, now_s)
        runnable = self._runnable(ranked, view)
        best = min(runnable, key=lambda r: r.key, default=None)
        blocked = self._first_blocked(view, ranked, now_s)
        candidates = self._memo.of(view.waiting)
        key = self.policy.key
        keys = [key(candidate, now_s) for candidate in candidates]
        first_key = min(keys, default=None)
        head = None
        if first_key is not None:
            index = keys.index(first_key)
            head = _Contender(first_key, candidates[index], index=index)
        return _Round(
            keys,
            ranked,
            runnable,
            head,
            None if best is None else _Contender(best.key, best.candidate, best.batch),
            blocked,
        )

    def _late_within_slack(
        self, loan: _Loan, first: _Contender, found: _Round, view: RoundView, now_s: float
    ) -> _Contender | None:
        """Return the shortest doomed prefill to which the first in order has slack to lend.

        It gets a key before all feasible ones and after the starving. Whoever it must not delay
        preempts it once the loan is over, for which there is a review.
        """
        if loan.review_s <= now_s or found.blocked is not None:
            return None  # nothing to lend; or memory is short: strictly in order
        key = (first.key[0], -math.inf)
        shortest: _Contender | None = None
        least_s = math.inf
        waiting = self._memo.of(view.waiting)
        late = [
            (candidate.remaining_s, index)
            for index, candidate in enumerate(waiting)
            if candidate.latest_start_s <= now_s and loan.covers(candidate)
        ]
        if late:
            least_s, index = min(late)
            shortest = _Contender(key, waiting[index], index=index)
        for ranked in found.runnable:
            candidate, batch = ranked.candidate, ranked.batch
            if candidate.latest_start_s > now_s or candidate.remaining_s > least_s:
                continue
            if loan.covers(candidate) and not batch.has_outrun_prediction:
                least_s = candidate.remaining_s
                shortest = _Contender(key, candidate, batch)
        return shortest

    def _first_blocked(
        self, view: RoundView, ranked: Sequence[RankedBatch], now_s: float
    ) -> _Contender | None:
        """Return whoever is first in the order of those that found no memory."""
        contenders = [
            _Contender(
                r.key,
                r.candidate,
                r.batch,
                shortage=Shortage(num_kv_tokens=r.batch.num_missing_tokens),
            )
            for r in ranked
            if r.batch.num_missing_tokens > 0
        ]
        if view.blocked is not None:
            (candidate,) = self.candidates((view.blocked.request,))
            # Turned away for want of something else (a request row): dropping one may help.
            shortage = Shortage(num_kv_tokens=max(view.blocked.num_missing_tokens, 1))
            key = self.policy.key(candidate, now_s)
            contenders.append(_Contender(key, candidate, shortage=shortage))
        return min(contenders, key=lambda c: c.key, default=None)

    def _runnable(self, ranked: Sequence[RankedBatch], view: RoundView) -> list[RankedBatch]:
        """Return the batches that can go on: they have memory, and what they suspend may stay."""
        current, budget = view.current, self.max_suspended_bytes
        held = HeldBytes.of(view.batches)
        return [
            r
            for r in ranked
            if r.batch.num_missing_tokens <= 0
            and (current is None or current is r.batch or held.over(budget, r.batch) <= 0.0)
        ]

    def _without_prefill(self, view: RoundView) -> Decision:
        if view.decode is not None:
            return RunDecode("nothing to prefill")
        is_blocked = bool(view.waiting) or bool(view.batches)
        return Wait("waiting requests are blocked" if is_blocked else "nothing to do")

    # ---- preemption ----

    def _may_preempt(self, current: PrefillBatch, first: _Contender, now_s: float) -> bool:
        """Tell whether the first in order goes before the current batch, and that pays."""
        if first.batch is current or not self.policy.may_preempt:
            return False
        if current.num_preemptions >= self.max_preemptions:
            return False
        if not current.has_outrun_prediction and self._is_nearly_done(current, first, now_s):
            return False
        candidate = self._batch_candidate(current, now_s).ahead_by(self.preemption_margin_s)
        return first.key < self.policy.key(candidate, now_s)

    def _is_nearly_done(self, current: PrefillBatch, first: _Contender, now_s: float) -> bool:
        """By the prediction. One that has outrun it may run for long yet."""
        if current.remaining_s < self.min_preemption_gain_s:
            return True
        is_late = self.lazy_fraction < 1.0 and (
            current.run_s >= self.lazy_fraction * current.predicted_s
        )
        return is_late and first.candidate.slack_s(now_s) > current.remaining_s

    # ---- memory ----

    def _within_budget(self, head: _Contender, view: RoundView) -> _Contender:
        """Return the head with what the budgets of suspended batches lack for it."""
        shortage = Shortage(
            held_bytes=HeldBytes.of(view.batches).over(self.max_suspended_bytes),
            num_batches=len(view.batches) - self.max_suspended,
        )
        return _Contender(head.key, head.candidate, index=head.index, shortage=shortage)

    def _without_room(
        self, first: _Contender, found: _Round, view: RoundView, now_s: float
    ) -> Decision:
        """Make room for the first in order, or let a started batch run in its stead."""
        is_stuck = found.best is None and view.decode is None
        wait_s = expected_wait_s(found.runnable, view.releases, first.shortage, now_s)
        slack_s = first.candidate.slack_s(now_s)
        can_afford_to_wait = wait_s < slack_s
        gains = self.policy.may_preempt and slack_s > 0.0 and not can_afford_to_wait
        if is_stuck or gains:
            victims = choose_victims(
                [r for r in found.ranked if self._is_droppable(r, first, is_stuck=is_stuck)],
                first.shortage,
            )
            if victims:
                reason = STUCK if is_stuck else TIGHTER_DEADLINE
                return DropBatches(tuple(b.batch_id for b in victims), reason)
        if found.best is None:
            return self._without_prefill(view)
        review_s = now_s + wait_s if can_afford_to_wait else math.inf
        return self._run_started(found.best, view, now_s, review_s)

    def _run_started(
        self, best: _Contender, view: RoundView, now_s: float, review_s: float
    ) -> ResumeBatch:
        current = _runnable_current(view)
        if current is not None and not self._may_preempt(current, best, now_s):
            return ResumeBatch(current.batch_id, "current prefill goes on", review_s)
        assert best.batch is not None
        return ResumeBatch(best.batch.batch_id, "first with memory in policy order", review_s)

    def _is_droppable(self, ranked: RankedBatch, needy: _Contender, *, is_stuck: bool) -> bool:
        if ranked.batch is needy.batch or self._is_immune(ranked.batch):
            return False
        return is_stuck or ranked.key > needy.key

    def _is_immune(self, batch: PrefillBatch) -> bool:
        return any(self.must_reserve_all(request) for request in batch.requests)

    # ---- starting ----

    def _start(self, head: _Contender, found: _Round, view: RoundView, now_s: float) -> StartBatch:
        reason = "first in policy order" if view.current is None else "preempts the current prefill"
        request = view.waiting[head.index]
        if not can_take_passengers(request, now_s, self.cost, self.limits):
            return StartBatch((request,), reason)
        others, keys = list(view.waiting), list(found.keys)
        del others[head.index], keys[head.index]
        if found.blocked is not None:
            barrier = found.blocked.key
            others = [r for r, key in zip(others, keys, strict=True) if key < barrier]
            keys = [key for key in keys if key < barrier]
        num_tokens_left = self.limits.max_tokens - request.num_uncached_tokens
        passengers = Passengers(others, keys, num_tokens_left)
        members = select_batch(request, passengers, now_s, self.cost, self.limits)
        return StartBatch(members, reason)

    # ---- the policy's view ----

    def _batch_candidate(self, batch: PrefillBatch, now_s: float) -> Candidate:
        """Return the member that is first in order: the batch is as urgent as that one."""
        remaining_s = batch.remaining_s
        members = [
            Candidate(
                r.arrival_s,
                r.slo.ttft_s,
                remaining_s,
                r.is_degraded,
                batch.predicted_s,
                is_soft=r.slo.is_soft,
            )
            for r in batch.requests
        ]
        return min(members, key=lambda member: self.policy.key(member, now_s))


def _runnable_current(view: RoundView) -> PrefillBatch | None:
    current = view.current
    return None if current is None or current.num_missing_tokens > 0 else current
