"""Judging a burst at once says what judging each request by the whole queue would say."""

import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import COST, TICK_S, all_policies, policy_of

from sglang_flowprefill.core import Backlog, DegradedLast, PrefillDecider, RoundView, SEdf
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.testing import make_batch, make_request

NOW_S = 2.0

ticks = st.integers(0, 64).map(lambda number: number * TICK_S)


@st.composite
def requests(draw, name, max_size=8):
    """Draw requests that came before now, some with equal keys."""
    return [
        replace(
            make_request(
                f"{name} {index}",
                arrival_s=draw(ticks),
                ttft_slo_s=draw(st.sampled_from([0.25, 1.0, 4.0])),
                num_uncached_tokens=draw(st.integers(1, 300)),
            ),
            is_degraded=draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, max_size)))
    ]


def wait_by_definition_s(decider, request, waiting, batches):
    """Return the time of all that goes before a request, in full batches."""
    key, policy = lambda candidate: policy.key(candidate, NOW_S), decider.policy
    own_key = key(decider.candidates((request,))[0])
    ahead = [r for r in waiting if key(decider.candidates((r,))[0]) <= own_key]
    view = RoundView(batches=batches)
    started_s = sum(r.batch.remaining_s for r in decider.ranked(view, NOW_S) if r.key <= own_key)
    return started_s + batched_s(decider, ahead)


def batched_s(decider, ahead):
    """Return the time of requests in full batches."""
    work_s = sum(decider.predict_s((request,)) - COST.base_s for request in ahead)
    num_tokens = sum(request.num_uncached_tokens for request in ahead)
    return work_s + COST.base_s * math.ceil(num_tokens / decider.limits.max_tokens)


@settings(deadline=None)
@given(
    st.sampled_from(all_policies).flatmap(policy_of),
    requests("waits"),
    requests("new"),
    requests("started", max_size=3),
)
def test_each_newcomer_waits_for_what_goes_before_it(policy, waiting, newcomers, started):
    """Those admitted before it too, by the key that they wait with now."""
    decider = PrefillDecider(DegradedLast(policy), COST, BatchLimits(512))
    batches = [make_batch(r, batch_id=i, run_s=TICK_S) for i, r in enumerate(started)]
    backlog = Backlog(decider, RoundView(waiting, batches), newcomers, NOW_S)
    waiting = list(waiting)
    for newcomer in newcomers:
        expected_s = wait_by_definition_s(decider, newcomer, waiting, batches)
        assert backlog.wait_s(newcomer) == pytest.approx(expected_s)
        assert backlog.num_waiting == len(waiting)
        total_s = sum(batch.remaining_s for batch in batches) + batched_s(decider, waiting)
        turnover_s = total_s / max(len(waiting) + len(batches), 1)
        assert backlog.turnover_s() == pytest.approx(turnover_s)
        admitted = replace(newcomer, is_degraded=not newcomer.is_degraded)
        backlog.add(admitted)
        waiting.append(admitted)


@dataclass(frozen=True)
class CountingPolicy(SEdf):
    """S-EDF that counts how often it is asked."""

    calls: list = field(default_factory=list)

    def key(self, candidate, now_s):
        """Order as ever."""
        self.calls.append(candidate)
        return super().key(candidate, now_s)


@pytest.mark.parametrize("num_new", [10, 100, 1000])
def test_a_burst_is_judged_with_a_few_calls_for_each_request(num_new):
    """Not one for each pair: thousands may arrive at once."""
    decider = PrefillDecider(CountingPolicy(), COST, BatchLimits(512))
    waiting = [make_request(f"waits {i}") for i in range(500)]
    newcomers = [make_request(f"new {i}", ttft_slo_s=1.0 + i) for i in range(num_new)]
    backlog = Backlog(decider, RoundView(waiting), newcomers, NOW_S)
    for newcomer in newcomers:
        backlog.wait_s(newcomer)
        backlog.add(newcomer)
    assert len(decider.policy.calls) <= len(waiting) + 3 * num_new
