"""One scheduling round: from a view of the world to one decision. One token is 1 ms."""

import math
from dataclasses import replace

import pytest

from sglang_flowprefill.core import (
    BlockedRequest,
    DecodeView,
    Fcfs,
    PrefillDecider,
    ResumeBatch,
    RoundView,
    RunDecode,
    SEdf,
    Sjf,
    StartBatch,
    Wait,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.testing import MS_PER_TOKEN, make_batch, make_request

S_EDF = PrefillDecider(SEdf(), MS_PER_TOKEN, BatchLimits(max_tokens=512))
FCFS = replace(S_EDF, policy=Fcfs())
NOW_S = 0.0

DOCUMENT = make_request("document", ttft_slo_s=30.0, num_uncached_tokens=8000)
URGENT = make_request("urgent", ttft_slo_s=0.5, num_uncached_tokens=100)


def decide(scheduler=S_EDF, now_s=NOW_S, **view):
    """Decide on a view given by its fields."""
    return scheduler.decide(RoundView(**view), now_s)


def started(decision):
    """Return the ids of a started batch."""
    assert isinstance(decision, StartBatch)
    return [request.request_id for request in decision.requests]


def running(*requests, **kwargs):
    """Return the view of a machine whose current prefill is this one."""
    current = make_batch(*requests, **kwargs)
    return {"batches": [current], "current": current}


# ---- without preemption ----


def test_nothing_to_do_means_wait():
    """An idle server sleeps."""
    assert decide() == Wait("nothing to do")


def test_blocked_requests_mean_wait():
    """Waiting requests without memory do not make the server spin."""
    decision = decide(waiting=[URGENT], blocked=BlockedRequest(URGENT, 100))
    assert decision == Wait("waiting requests are blocked")


def test_the_first_in_policy_order_starts():
    """S-EDF starts the earliest deadline, whatever the order of arrival."""
    huge = replace(URGENT, request_id="huge", num_uncached_tokens=400)
    assert started(decide(waiting=[DOCUMENT, huge])) == ["huge"]


def test_passengers_come_along_in_policy_order():
    """The head's batch is filled by deadline, within the token bound."""
    waiting = [
        make_request(name, ttft_slo_s=slo_s, num_uncached_tokens=200)
        for name, slo_s in [("third", 3.0), ("first", 1.0), ("second", 2.0)]
    ]
    assert started(decide(waiting=waiting)) == ["first", "second"]


def test_a_suspended_batch_with_an_earlier_deadline_resumes_first():
    """Started work is not left behind for later deadlines."""
    suspended = make_batch(URGENT, batch_id=4, run_s=0.01)
    decision = decide(waiting=[DOCUMENT], batches=[suspended])
    assert decision == ResumeBatch(4, "first in policy order")


def test_a_waiting_request_goes_before_a_later_suspended_batch():
    """Suspended work has no privilege over an earlier deadline."""
    suspended = make_batch(DOCUMENT, run_s=1.0)
    assert started(decide(waiting=[URGENT], batches=[suspended])) == ["urgent"]


def test_the_most_urgent_suspended_batch_resumes():
    """Among batches the policy's order holds too."""
    late = make_batch(DOCUMENT, batch_id=1, run_s=1.0)
    soon = make_batch(URGENT, batch_id=2, run_s=0.01)
    assert decide(batches=[late, soon]).batch_id == 2


def test_a_batch_is_as_urgent_as_its_most_urgent_member():
    """A passenger's deadline counts when the batch competes for the machine."""
    mixed = make_batch(DOCUMENT, URGENT, batch_id=1, cost=replace(MS_PER_TOKEN, per_token_s=1e-6))
    other = make_batch(make_request("other", ttft_slo_s=0.6), batch_id=2)
    assert decide(batches=[other, mixed]).batch_id == 1


def test_work_already_done_counts_towards_feasibility():
    """What was doomed from scratch is feasible once most of it has run."""
    deadline_s = {"ttft_slo_s": 1.0, "num_uncached_tokens": 950}
    batch = make_batch(make_request("nearly done", **deadline_s), batch_id=3, run_s=0.9)
    waiting = [make_request("later", ttft_slo_s=2.0)]
    assert decide(now_s=0.93, batches=[batch], waiting=waiting).batch_id == 3
    from_scratch = make_batch(make_request("not begun", **deadline_s))
    assert started(decide(now_s=0.93, batches=[from_scratch], waiting=waiting)) == ["later"]


# ---- preemption ----


def test_a_tighter_deadline_preempts():
    """The promise of the project: the urgent request does not wait for the document."""
    decision = decide(waiting=[URGENT], **running(DOCUMENT, run_s=1.0))
    assert decision == StartBatch((URGENT,), "preempts the current prefill")


def test_a_later_deadline_does_not_preempt():
    """Arrivals that can wait do."""
    decision = decide(waiting=[DOCUMENT], **running(URGENT, run_s=0.01))
    assert decision == ResumeBatch(0, "current prefill goes on")


def test_an_equal_deadline_does_not_preempt():
    """A switch needs a reason."""
    twin = replace(URGENT, request_id="twin", num_uncached_tokens=300)
    assert decide(waiting=[twin], **running(URGENT, run_s=0.01)).batch_id == 0


def test_a_doomed_request_does_not_preempt_a_feasible_one_that_needs_its_slack():
    """It would cost a first token in time and gain none."""
    doomed = make_request("doomed", ttft_slo_s=0.5, num_uncached_tokens=4000)
    now_s = (
        DOCUMENT.deadline_s - 7.0 - 7.9
    )  # which leaves a slack of 7.9 s, a quarter of it too little
    decision = decide(now_s=now_s, waiting=[doomed], **running(DOCUMENT, run_s=1.0))
    assert decision.batch_id == 0


def test_the_shortest_doomed_request_runs_inside_a_quarter_of_the_slack():
    """A missed objective is not the end of service; there is a review when the quarter is over."""
    chat = make_request("late chat", ttft_slo_s=0.001, num_uncached_tokens=64)
    longer = make_request("late report", ttft_slo_s=0.001, num_uncached_tokens=640)
    decision = decide(now_s=1.0, waiting=[longer, chat], **running(DOCUMENT, run_s=1.0))
    assert started(decision) == ["late chat"]
    slack_s = DOCUMENT.deadline_s - 7.0 - 1.0
    assert decision.review_s == pytest.approx(1.0 + slack_s / 4)


def test_a_late_prefill_that_runs_goes_on_while_what_is_left_fits():
    """Time takes as much from what is left as from the slack; a prediction outrun ends the loan."""
    late = make_batch(make_request("late", ttft_slo_s=0.001, num_uncached_tokens=1000), run_s=0.5)
    tight = make_request("tight", ttft_slo_s=0.9, num_uncached_tokens=100)
    loose = make_request("loose", ttft_slo_s=4.0, num_uncached_tokens=100)
    assert started(decide(now_s=0.01, waiting=[tight], batches=[late], current=late)) == ["tight"]
    decision = decide(now_s=0.01, waiting=[loose], batches=[late], current=late)
    assert decision.batch_id == late.batch_id
    outran = make_batch(make_request("late", ttft_slo_s=0.001, num_uncached_tokens=400), run_s=0.5)
    decision = decide(now_s=0.01, waiting=[loose], batches=[outran], current=outran)
    assert started(decision) == ["loose"]


def test_a_late_prompt_that_nobody_gave_an_objective_may_be_of_any_length():
    """It runs until the first feasible one has waited for a quarter of what it came with."""
    late = make_request("unlabelled", ttft_slo_s=0.5, num_uncached_tokens=2500)
    late = replace(late, slo=replace(late.slo, is_soft=True))
    chat = make_request("chat", arrival_s=10.0, ttft_slo_s=1.1, num_uncached_tokens=100)
    decision = decide(now_s=10.0, waiting=[chat, late])
    assert started(decision) == ["unlabelled"]
    assert decision.review_s == pytest.approx(10.25)
    assert started(decide(now_s=10.2501, waiting=[chat, late])) == ["chat"]
    stated = replace(late, slo=replace(late.slo, is_soft=False))
    assert started(decide(now_s=10.0, waiting=[chat, stated])) == ["chat"]


def test_nobody_lends_where_memory_is_short():
    """A request that found no memory waits in its order; others do not take what comes free."""
    chat = make_request("late chat", ttft_slo_s=0.001, num_uncached_tokens=64)
    blocked = BlockedRequest(URGENT, 10)
    decision = decide(
        now_s=0.1, waiting=[chat, URGENT], blocked=blocked, **running(DOCUMENT, run_s=1.0)
    )
    assert decision.batch_id == 0


def test_a_feasible_request_preempts_a_doomed_one():
    """A prefill that missed its deadline makes room for one that need not."""
    assert started(
        decide(
            now_s=29.9, waiting=[replace(URGENT, arrival_s=29.9)], **running(DOCUMENT, run_s=1.0)
        )
    ) == ["urgent"]


def test_a_suspended_batch_may_preempt_too():
    """When the running prefill turns doomed, a feasible suspended one takes over."""
    doomed = make_batch(make_request("doomed", ttft_slo_s=1.0, num_uncached_tokens=5000), run_s=0.1)
    feasible = make_batch(DOCUMENT, batch_id=5, run_s=0.1)
    now_s = DOCUMENT.deadline_s - 12.0
    decision = decide(now_s=now_s, batches=[doomed, feasible], current=doomed)
    assert decision == ResumeBatch(5, "first in policy order")


@pytest.mark.parametrize(
    ("remaining_s", "preempts"), [(0.25, True), (0.0625, True), (0.0624, False), (0.001, False)]
)
def test_a_nearly_finished_prefill_is_not_preempted(remaining_s, preempts):
    """Below the gain margin the newcomer waits: suspending would cost more than it brings."""
    scheduler = replace(S_EDF, min_preemption_gain_s=0.0625)
    current = running(DOCUMENT, run_s=8.0 - remaining_s)
    decision = decide(scheduler, waiting=[URGENT], **current)
    assert isinstance(decision, StartBatch) is preempts


def test_a_prefill_that_outran_its_prediction_is_preempted():
    """With nothing left by the prediction, the prediction was wrong: it may run for long yet."""
    scheduler = replace(S_EDF, min_preemption_gain_s=0.05)
    assert started(decide(scheduler, waiting=[URGENT], **running(DOCUMENT, run_s=9.0))) == [
        "urgent"
    ]


@pytest.mark.parametrize(("num_preemptions", "preempts"), [(0, True), (2, True), (3, False)])
def test_after_enough_preemptions_a_batch_runs_to_its_end(num_preemptions, preempts):
    """No request makes way for ever, whatever arrives."""
    scheduler = replace(S_EDF, max_preemptions=3)
    view = running(DOCUMENT, run_s=1.0)
    view["current"].num_preemptions = num_preemptions
    assert isinstance(decide(scheduler, waiting=[URGENT], **view), StartBatch) is preempts


@pytest.mark.parametrize(
    ("margin_s", "deadline_gap_s", "preempts"),
    [(0.0, 0.001, True), (0.25, 0.251, True), (0.25, 0.25, False), (0.25, 0.001, False)],
)
@pytest.mark.parametrize("now_s", [0.0, 5.0])
def test_a_preemption_needs_a_margin_feasible_or_not(margin_s, deadline_gap_s, preempts, now_s):
    """Nearly equal requests do not take turns; the margin is seconds, so no sign inverts it."""
    scheduler = replace(S_EDF, preemption_margin_s=margin_s, policy=SEdf(math.inf))
    current = running(make_request("current", ttft_slo_s=1.0, num_uncached_tokens=700), run_s=0.1)
    newcomer = make_request("new", ttft_slo_s=1.0 - deadline_gap_s, num_uncached_tokens=10)
    is_doomed = newcomer.deadline_s < now_s
    assert is_doomed is (now_s == 5.0)
    decision = decide(scheduler, waiting=[newcomer], now_s=now_s, **current)
    assert isinstance(decision, StartBatch) is preempts


def test_the_margin_is_work_where_the_policy_orders_by_work():
    """Shortest job first preempts for what is shorter by more than the margin."""
    scheduler = replace(S_EDF, policy=Sjf(), preemption_margin_s=0.25)
    current = running(DOCUMENT, run_s=7.5)
    answers = [
        isinstance(
            decide(scheduler, waiting=[make_request("x", num_uncached_tokens=n)], **current),
            StartBatch,
        )
        for n in (240, 260)
    ]
    assert answers == [True, False]


@pytest.mark.parametrize(
    ("run_s", "newcomer_slo_s", "preempts"),
    [
        (7.1, 2.0, True),  # before the last tenth, everybody better preempts
        (7.2, 2.0, False),  # slack 1.9 s, and the end is 0.8 s away
        (7.2, 0.89, True),  # slack 0.79 s: cannot wait
        (8.1, 2.0, True),  # outran its prediction: nobody knows when it ends
    ],
)
def test_close_to_its_end_a_batch_is_preempted_only_by_what_cannot_wait(
    run_s, newcomer_slo_s, preempts
):
    """A switch that saves nobody's first token is not made; one that does, is."""
    scheduler = replace(S_EDF, lazy_fraction=0.9)
    newcomer = make_request("new", ttft_slo_s=newcomer_slo_s, num_uncached_tokens=100)
    decision = decide(scheduler, waiting=[newcomer], **running(DOCUMENT, run_s=run_s))
    assert isinstance(decision, StartBatch) is preempts


def test_fcfs_never_preempts():
    """The baseline finishes what it began."""
    earlier = replace(URGENT, arrival_s=-1.0)
    assert decide(FCFS, waiting=[earlier], **running(DOCUMENT, run_s=1.0)).batch_id == 0


def test_fcfs_starts_in_order_of_arrival():
    """The baseline ignores deadlines."""
    first, second = replace(DOCUMENT, arrival_s=1.0), replace(URGENT, arrival_s=2.0)
    assert started(decide(FCFS, now_s=3.0, waiting=[second, first])) == ["document"]


# ---- bounds ----


@pytest.mark.parametrize(("num_batches", "starts"), [(1, True), (2, True), (3, False), (4, False)])
def test_no_more_than_max_suspended_prefills_stand_still(num_batches, starts):
    """A new batch may suspend the current one only while the bound has room."""
    scheduler = replace(S_EDF, max_suspended=2)
    batches = [
        make_batch(replace(DOCUMENT, request_id=str(i)), batch_id=i, run_s=0.1)
        for i in range(num_batches)
    ]
    decision = decide(scheduler, waiting=[URGENT], batches=batches, current=batches[0])
    assert isinstance(decision, StartBatch) is starts
    if not starts:
        assert decision == ResumeBatch(0, "current prefill goes on")


def test_without_memory_started_work_still_runs():
    """A full cache stops new batches, not the ones that own memory."""
    suspended = make_batch(DOCUMENT, batch_id=6, run_s=0.1)
    blocked = BlockedRequest(URGENT, 100)
    assert decide(waiting=[URGENT], batches=[suspended], blocked=blocked).batch_id == 6


# ---- decode ----


@pytest.mark.parametrize(("now_s", "runs"), [(0.9, False), (1.0, True), (1.1, True)])
def test_a_due_decode_step_goes_before_any_prefill(now_s, runs):
    """Running requests get their next token in time, inside somebody's prefill."""
    view = {"waiting": [URGENT], "decode": DecodeView(due_s=1.0), **running(DOCUMENT, run_s=0.1)}
    decision = decide(now_s=now_s, **view)
    assert (decision == RunDecode("decode step due")) is runs


def test_decode_runs_when_there_is_nothing_to_prefill():
    """An idle machine does not wait for the step to be due."""
    assert decide(decode=DecodeView(due_s=9.0)) == RunDecode("nothing to prefill")


def test_decode_runs_while_waiting_requests_are_blocked():
    """Decoding is what frees the memory that they wait for."""
    blocked = BlockedRequest(URGENT, 100)
    decision = decide(waiting=[URGENT], blocked=blocked, decode=DecodeView(due_s=9.0))
    assert decision == RunDecode("nothing to prefill")


def test_deciding_changes_nothing():
    """Equal arguments give equal decisions: a round has no memory."""
    view = {"waiting": [DOCUMENT, URGENT], **running(DOCUMENT, run_s=1.0)}
    assert decide(**view) == decide(**view)
