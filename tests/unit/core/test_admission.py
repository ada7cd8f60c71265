"""What happens to a request, at its arrival, that would come too late. One token is 1 ms."""

import math
from dataclasses import replace
from functools import partial

import pytest

from sglang_flowprefill.core import (
    AdmissionControl,
    Admit,
    Backlog,
    Degrade,
    DegradedLast,
    Fcfs,
    PrefillCost,
    PrefillDecider,
    Reject,
    RoundView,
    SEdf,
    StartBatch,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.testing import MS_PER_TOKEN, make_batch, make_request

S_EDF = PrefillDecider(SEdf(), MS_PER_TOKEN, BatchLimits(1000))
FCFS = replace(S_EDF, policy=Fcfs())
REJECT = AdmissionControl("reject")

EARLIER = [make_request(str(i), ttft_slo_s=2.0, num_uncached_tokens=300) for i in range(3)]
"""Three waiting requests of 0.3 s each, due at 2 s."""


def decide(control, request, *, scheduler=S_EDF, now_s=0.0, **view):
    """Decide on one arrival."""
    view.setdefault("waiting", EARLIER)
    backlog = Backlog(scheduler, RoundView(**view), [request], now_s)
    return control.decide(request, backlog, now_s)


@pytest.mark.parametrize(
    ("ttft_slo_s", "num_tokens", "expected"),
    [
        pytest.param(3.0, 100, Admit(), id="there is time for all"),
        pytest.param(0.11, 100, Admit(), id="a tighter deadline goes first"),
        pytest.param(2.0, 1100, Admit(), id="in time to the last moment"),
        pytest.param(
            2.1, 1500, Reject("predicted to miss its deadline", 0.3), id="late by the queue"
        ),
        pytest.param(
            1.0,
            1001,
            Reject("too long for its deadline on an idle server", math.inf),
            id="never in time",
        ),
    ],
)
def test_a_request_is_rejected_if_it_would_be_late(ttft_slo_s, num_tokens, expected):
    """Predicted from what goes before it: 0.9 s of work for a later deadline, none for a tighter.

    One that is too long even for an idle server goes behind the three, but time does not help it.
    """
    request = make_request("new", ttft_slo_s=ttft_slo_s, num_uncached_tokens=num_tokens)
    decision = decide(REJECT, request)
    assert type(decision) is type(expected)
    assert decision.reason == expected.reason
    if isinstance(expected, Reject):
        assert decision.retry_after_s == pytest.approx(expected.retry_after_s)


def test_started_work_counts_by_what_is_left_of_it():
    """If it is before the newcomer in the policy's order, that is."""
    batch = make_batch(make_request("b", ttft_slo_s=9.0, num_uncached_tokens=5000), run_s=4.5)
    due_in = partial(make_request, "new", num_uncached_tokens=100)
    answers = [
        decide(REJECT, due_in(ttft_slo_s=slo_s), scheduler=scheduler, waiting=[], batches=[batch])
        for slo_s, scheduler in ((0.55, S_EDF), (0.65, FCFS), (0.55, FCFS))
    ]
    assert [type(answer) for answer in answers] == [Admit, Admit, Reject]


def test_time_already_waited_counts():
    """The objective runs from the arrival at the server, not from this decision."""
    request = make_request("new", ttft_slo_s=1.0, num_uncached_tokens=500)
    assert isinstance(decide(REJECT, request, waiting=[], now_s=0.5), Admit)
    assert isinstance(decide(REJECT, request, waiting=[], now_s=0.51), Reject)


def test_waiting_requests_share_launch_overhead():
    """Ten short prompts fill one batch, and pay its base once."""
    scheduler = replace(S_EDF, cost=PrefillCost(0.1, 0.001, 0.0))
    waiting = [make_request(str(i), ttft_slo_s=1.5, num_uncached_tokens=50) for i in range(10)]
    view = RoundView(waiting=waiting)
    last = make_request("new", ttft_slo_s=9.0)
    assert Backlog(scheduler, view, [last], 0.0).wait_s(last) == pytest.approx(0.1 + 0.5)


def test_tolerance_is_a_multiple_of_the_objective():
    """For those who know that their predictions are long."""
    request = make_request("new", ttft_slo_s=2.1, num_uncached_tokens=1500)
    assert isinstance(decide(replace(REJECT, tolerance=1.2), request), Admit)


def test_off_admits_everybody():
    """The default changes nothing."""
    hopeless = make_request("new", ttft_slo_s=0.001, num_uncached_tokens=9999)
    assert isinstance(decide(AdmissionControl(), hopeless), Admit)


def test_degrade_admits_the_late_to_be_served_last():
    """Nobody is refused, and the hopeless make nobody else late."""
    late = make_request("new", ttft_slo_s=2.1, num_uncached_tokens=1500)
    assert decide(AdmissionControl("degrade"), late) == Degrade("predicted to miss its deadline")
    scheduler = replace(S_EDF, policy=DegradedLast(SEdf()), limits=BatchLimits(1))
    degraded = replace(late, is_degraded=True, slo=replace(late.slo, ttft_s=0.5))
    order = []
    waiting = [degraded, *EARLIER]
    while waiting:
        decision = scheduler.decide(RoundView(waiting=waiting), 0.0)
        assert isinstance(decision, StartBatch)
        order.append(decision.requests[0].request_id)
        waiting.remove(decision.requests[0])
    assert order == ["0", "1", "2", "new"]


def test_a_degraded_prefill_makes_way_and_does_not_wait_for_ever():
    """Last among all, until it has waited a multiple of its objective."""
    policy = DegradedLast(SEdf(10.0), patience=20.0)
    degraded = replace(make_request("late", ttft_slo_s=1.0), is_degraded=True)
    batch = make_batch(degraded, run_s=0.01)
    scheduler = replace(S_EDF, policy=policy)
    for now_s, goes_on in ((0.1, False), (20.0, False), (20.1, True)):
        fresh = make_request("fresh", arrival_s=now_s, ttft_slo_s=30.0)
        view = RoundView(waiting=[fresh], batches=[batch], current=batch)
        assert isinstance(scheduler.decide(view, now_s), StartBatch) is not goes_on
    assert DegradedLast(Fcfs()).may_preempt is False


def test_patience_runs_from_the_arrival_and_is_a_multiple_of_the_objective():
    """Not from the start of the server, and not in seconds."""
    policy = DegradedLast(Fcfs(), patience=3.0)
    late = make_request("late", arrival_s=100.0, ttft_slo_s=2.0)
    (candidate,) = FCFS.candidates([replace(late, is_degraded=True)])
    assert policy.key(candidate, 106.0) == (math.inf, 100.0)
    assert policy.key(candidate, 106.1) == (100.0,)


@pytest.mark.parametrize("mode", ["off", "reject", "degrade"])
def test_a_full_queue_refuses_in_every_mode(mode):
    """With the time in which one request leaves it on average."""
    request = make_request("new", ttft_slo_s=100.0, num_uncached_tokens=1)
    control = AdmissionControl(mode, max_waiting=3)
    decision = decide(control, request)
    assert decision.reason == "the queue is full"
    assert decision.retry_after_s == pytest.approx(0.3)
    assert isinstance(decide(replace(control, max_waiting=4), request), Admit)
