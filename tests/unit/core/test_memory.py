"""Memory as a budget: who waits, who is dropped, and for whom. One token is 1 ms."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_flowprefill.core import (
    BlockedRequest,
    DecodeView,
    DropBatches,
    Fcfs,
    PrefillDecider,
    Release,
    ResumeBatch,
    RoundView,
    RunDecode,
    SEdf,
    StartBatch,
    Wait,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.core.memory import (
    HeldBytes,
    RankedBatch,
    Shortage,
    choose_victims,
    expected_wait_s,
)
from sglang_flowprefill.core.policy import Candidate
from sglang_flowprefill.testing import MS_PER_TOKEN, make_batch, make_request

SCHEDULER = PrefillDecider(SEdf(), MS_PER_TOKEN, BatchLimits(512), max_restarts=2)
URGENT = make_request("urgent", ttft_slo_s=0.5, num_uncached_tokens=100)


def holding(batch_id, num_kv_tokens, *, due_s=30.0, num_tokens=8000, num_restarts=0, **kwargs):
    """Return a suspended batch of one long prompt that holds KV."""
    request = make_request(f"held {batch_id}", ttft_slo_s=due_s, num_uncached_tokens=num_tokens)
    request = replace(request, num_restarts=num_restarts)
    batch = make_batch(request, batch_id=batch_id, run_s=kwargs.pop("run_s", 1.0))
    batch.num_kv_tokens = num_kv_tokens
    for name, value in kwargs.items():
        setattr(batch, name, value)
    return batch


def decide(*batches, missing=0, head=URGENT, scheduler=SCHEDULER, now_s=0.0, **view):
    """Decide with a head that lacks so many KV slots (none: it is not known to lack any)."""
    blocked = BlockedRequest(head, missing) if missing else None
    waiting = view.pop("waiting", [head])
    return scheduler.decide(
        RoundView(waiting=waiting, batches=batches, blocked=blocked, **view), now_s
    )


def dropped(decision):
    """Return the ids of dropped batches, or an empty list for any other decision."""
    return list(decision.batch_ids) if isinstance(decision, DropBatches) else []


# ---- choosing ----


def ranked(*rows):
    """Return batches given by key, KV held and seconds run; ids count from zero."""
    batches = [holding(i, held, run_s=run_s) for i, (_, held, run_s) in enumerate(rows)]
    return [
        RankedBatch((float(key),), Candidate(0.0, 1.0, 1.0), batch)
        for (key, _, _), batch in zip(rows, batches, strict=True)
    ]


@pytest.mark.parametrize(
    ("rows", "missing", "expected"),
    [
        pytest.param([(1, 50, 1), (2, 50, 1)], 40, {1}, id="last in the order first"),
        pytest.param([(1, 50, 2), (1, 50, 1)], 40, {1}, id="least time run among equals"),
        pytest.param([(1, 50, 1), (2, 50, 1)], 51, {0, 1}, id="as many as needed"),
        pytest.param([(1, 50, 1), (2, 50, 1)], 101, set(), id="all or nothing"),
        pytest.param([(1, 90, 1), (2, 10, 1)], 80, {0}, id="nobody is dropped for nothing"),
        pytest.param([(1, 90, 1), (2, 0, 1)], 80, {0}, id="one that holds nothing is spared"),
        pytest.param([(1, 50, 1), (2, 40, 1), (3, 50, 1)], 90, {1, 2}, id="exactly enough"),
        pytest.param([], 1, set(), id="nobody there"),
    ],
)
def test_the_least_valuable_that_suffice_are_chosen(rows, missing, expected):
    """Last in the policy's order first, no more than needed, none unless it helps."""
    chosen = choose_victims(ranked(*rows), Shortage(num_kv_tokens=missing))
    assert {batch.batch_id for batch in chosen} == expected


def test_a_shortage_of_several_things_is_covered_in_all():
    """KV, bytes and the number of batches count separately."""
    batches = ranked((1, 100, 1), (2, 0, 1))
    batches[1].batch.held_bytes = 7
    kv, both = Shortage(num_kv_tokens=1), Shortage(num_kv_tokens=1, held_bytes=7, num_batches=1)
    assert [b.batch_id for b in choose_victims(batches, kv)] == [0]
    assert [b.batch_id for b in choose_victims(batches, both)] == [0, 1]
    assert choose_victims(batches, replace(both, num_batches=3)) == ()


# ---- waiting for memory ----


def test_memory_is_expected_when_what_runs_first_has_ended_and_decoded():
    """Batches end one after the other in the policy's order; running requests on their own."""
    first, second = ranked((1, 10, 1), (2, 20, 1))
    first.batch.release_s, second.batch.release_s = 0.5, 0.0
    left_s = first.batch.remaining_s
    waits = {
        missing: expected_wait_s(
            [second, first], [Release(103.0, 5)], Shortage(num_kv_tokens=missing), now_s=100.0
        )
        for missing in (5, 6, 16, 35, 36)
    }
    assert waits == {
        5: 3.0,
        6: left_s + 0.5,
        16: 2 * left_s,
        35: 2 * left_s,
        36: math.inf,
    }


def test_places_and_activations_come_free_when_a_prefill_ends():
    """They do not wait for its decoding."""
    (batch,) = ranked((1, 10, 1))
    batch.batch.held_bytes = 9
    shortage = Shortage(held_bytes=9, num_batches=1)
    assert expected_wait_s([batch], [], shortage, now_s=5.0) == batch.batch.remaining_s


def test_bytes_and_places_that_come_free_one_after_the_other_add_up():
    """Two ends cover what one does not."""
    first, second = ranked((1, 10, 1), (2, 10, 1))
    first.batch.held_bytes = second.batch.held_bytes = 5
    left_s = first.batch.remaining_s
    for shortage in (Shortage(held_bytes=10), Shortage(num_batches=2)):
        assert expected_wait_s([first, second], [], shortage, now_s=5.0) == 2 * left_s


def test_one_token_short_is_short():
    """It may not run on, and is waited for like one that lacks thousands."""
    held = holding(1, 4000, due_s=20.0, num_missing_tokens=1)
    later = make_request("later", ttft_slo_s=90.0, num_uncached_tokens=1)
    decision = decide(held, waiting=[later], current=held)
    assert decision == Wait("waiting requests are blocked")


def test_what_is_overdue_is_not_counted_on():
    """A release in the past, or a batch that outran its prediction, may take for ever."""
    (late,) = ranked((1, 10, 9.0))
    late.batch.release_s = 0.0
    shortage = Shortage(num_kv_tokens=1)
    assert expected_wait_s([late], [Release(4.0, 10)], shortage, now_s=5.0) == math.inf


# ---- deciding: KV ----


def test_a_tighter_deadline_without_memory_has_a_later_batch_dropped():
    """It cannot wait for 7 seconds of prefill, and dropping makes it fit."""
    decision = decide(holding(4, 8000), missing=100)
    assert decision == DropBatches((4,), "makes room for a tighter deadline")


NEVER_DROPS = {"scheduler": replace(SCHEDULER, max_restarts=0)}
NEVER_PREEMPTS = {"scheduler": replace(SCHEDULER, policy=Fcfs())}


@pytest.mark.parametrize(
    ("batch", "missing", "view"),
    [
        pytest.param(holding(0, 99), 100, {}, id="dropping would not be enough"),
        pytest.param(holding(0, 8000, num_restarts=2), 9, {}, id="immune after its last restart"),
        pytest.param(
            holding(0, 8000, due_s=0.4, num_tokens=1200), 9, {}, id="before the head in the order"
        ),
        pytest.param(holding(0, 8000), 100, {"now_s": 0.45}, id="the head is doomed"),
        pytest.param(holding(0, 8000), 9, NEVER_DROPS, id="nothing may be dropped"),
        pytest.param(holding(0, 8000), 9, NEVER_PREEMPTS, id="the policy never preempts"),
        pytest.param(
            holding(0, 8000), 9, {"releases": [Release(0.3, 9)]}, id="memory comes free in time"
        ),
        pytest.param(
            holding(0, 8000, run_s=7.8, release_s=0.1), 9, {}, id="the batch ends in time"
        ),
    ],
)
def test_otherwise_it_waits_and_started_work_goes_on(batch, missing, view):
    """Nothing is thrown away without a first token to gain."""
    decision = decide(batch, missing=missing, **view)
    assert isinstance(decision, ResumeBatch)
    assert decision.batch_id == 0


def test_a_head_that_can_wait_asks_for_a_review_when_the_memory_should_have_come():
    """If the prediction was wrong, there is a round in which it may still be dropped."""
    decision = decide(holding(0, 8000), missing=100, releases=[Release(0.3, 100)])
    assert decision.review_s == pytest.approx(0.3)
    late = decide(holding(0, 8000), missing=100, releases=[Release(0.3, 100)], now_s=0.3)
    assert dropped(late) == [0]


def test_a_release_that_comes_too_late_is_no_reason_to_wait():
    """Slack has to exceed the wait."""
    assert dropped(decide(holding(0, 8000), missing=100, releases=[Release(0.41, 100)])) == [0]


def test_a_current_batch_that_may_not_be_preempted_is_not_dropped_either():
    """Dropping is the stronger of the two."""
    current = holding(0, 8000, run_s=7.96)
    scheduler = replace(SCHEDULER, min_preemption_gain_s=0.05)
    current.release_s = math.inf
    assert dropped(decide(current, missing=1, current=current)) == [0]
    decision = decide(current, missing=1, current=current, scheduler=scheduler)
    assert decision == ResumeBatch(0, "current prefill goes on")


def test_a_request_turned_away_for_another_reason_does_not_start_again_at_once():
    """Lack of a request row is no lack of KV; a dropped batch gives its rows back too."""
    blocked = BlockedRequest(URGENT, num_missing_tokens=0)
    held = holding(0, 8000)
    view = RoundView(waiting=[URGENT], batches=[held], blocked=blocked)
    assert dropped(SCHEDULER.decide(view, 0.0)) == [0]
    view = RoundView(waiting=[URGENT], blocked=blocked, decode=DecodeView(due_s=9.0))
    assert SCHEDULER.decide(view, 0.0) == RunDecode("nothing to prefill")


def test_nobody_behind_the_blocked_request_starts():
    """The memory that comes free is kept for it, however well a later one would fit."""
    later = make_request("later", ttft_slo_s=0.6, num_uncached_tokens=1)
    held = holding(0, 99)
    assert isinstance(decide(held, missing=100, waiting=[later, URGENT]), ResumeBatch)
    decision = decide(missing=100, waiting=[later, URGENT], decode=DecodeView(due_s=9.0))
    assert decision == RunDecode("nothing to prefill")
    assert decide(missing=100, waiting=[later, URGENT]) == Wait("waiting requests are blocked")


def test_whoever_is_before_the_blocked_request_still_starts_and_takes_nobody_behind_it():
    """Lack of memory for a long prompt does not stop a more urgent short one."""
    document = make_request("document", ttft_slo_s=30.0, num_uncached_tokens=100)
    later = make_request("later", ttft_slo_s=31.0, num_uncached_tokens=1)
    second = replace(URGENT, request_id="second", arrival_s=0.01)
    waiting = [document, later, second, URGENT]
    decision = decide(missing=100, head=document, waiting=waiting)
    assert isinstance(decision, StartBatch)
    assert [r.request_id for r in decision.requests] == ["urgent", "second"]


# ---- deciding: chunks ----


def test_a_batch_without_memory_for_its_next_chunk_is_not_resumed():
    """Another one runs in its stead, and nobody behind it starts."""
    blocked = holding(1, 4000, due_s=20.0, num_missing_tokens=10)
    other = holding(2, 9, due_s=30.0)
    later = make_request("later", ttft_slo_s=25.0, num_uncached_tokens=100)
    decision = decide(blocked, other, waiting=[later], current=blocked)
    assert decision == ResumeBatch(2, "first with memory in policy order")


def test_a_chunk_may_have_later_batches_dropped():
    """Half a prompt has the same right to memory as a whole one."""
    blocked = holding(1, 4000, due_s=8.0, num_missing_tokens=10)
    assert dropped(decide(blocked, holding(2, 9000), waiting=[])) == [2]


def test_if_nothing_can_run_the_first_in_order_gets_room_whatever_its_slack():
    """Two halves of prompts that wait for each other are no deadlock."""
    first = holding(1, 4000, due_s=1.0, num_missing_tokens=10)
    second = holding(2, 4000, due_s=2.0, num_missing_tokens=10)
    for scheduler in (SCHEDULER, replace(SCHEDULER, policy=Fcfs())):
        decision = decide(first, second, waiting=[], now_s=50.0, scheduler=scheduler)
        assert decision == DropBatches((2,), "nothing else can run")


def test_running_requests_are_waited_for_before_a_doomed_one_has_anybody_dropped():
    """Their end frees memory without any loss."""
    first = holding(1, 4000, due_s=1.0, num_missing_tokens=10)
    second = holding(2, 4000, due_s=2.0, num_missing_tokens=10)
    decision = decide(first, second, waiting=[], now_s=50.0, decode=DecodeView(due_s=99.0))
    assert decision == RunDecode("nothing to prefill")


# ---- deciding: budgets of suspended batches ----


def test_when_too_many_stand_suspended_the_last_makes_room_for_a_tighter_deadline():
    """The bound on suspended prefills does not turn the order upside down."""
    batches = [holding(1, 10, due_s=30.0), holding(2, 10, due_s=40.0)]
    scheduler = replace(SCHEDULER, max_suspended=1)
    assert dropped(decide(*batches, scheduler=scheduler, current=batches[0])) == [2]


def test_a_head_that_can_wait_for_a_place_does():
    """One of the suspended ends within its slack."""
    batches = [holding(1, 10, due_s=30.0, run_s=7.9), holding(2, 10, due_s=40.0)]
    scheduler = replace(SCHEDULER, max_suspended=1)
    decision = decide(*batches, scheduler=scheduler)
    assert decision == ResumeBatch(
        1, "first with memory in policy order", review_s=pytest.approx(0.1)
    )


@pytest.mark.parametrize(("budget", "expected"), [(100, None), (99, [2]), (60, [2]), (39, [2])])
def test_activations_of_suspended_batches_stay_within_their_bytes(budget, expected):
    """A start that would suspend too much has the last in the order dropped first."""
    batches = [holding(1, 10, held_bytes=40), holding(2, 10, due_s=40.0, held_bytes=60)]
    scheduler = replace(SCHEDULER, max_suspended_bytes=budget)
    decision = decide(*batches, scheduler=scheduler, current=batches[0])
    if expected is None:
        assert isinstance(decision, StartBatch)
    else:
        assert dropped(decision) == expected


def test_a_suspended_batch_does_not_take_over_if_those_it_leaves_are_too_big_to_stand_still():
    """Without a current one, anybody may resume, so nothing gets stuck."""
    big, other = holding(1, 10, held_bytes=40), holding(3, 10, due_s=40.0, held_bytes=20)
    small = holding(2, 10, due_s=9.0, held_bytes=5)
    scheduler = replace(SCHEDULER, max_suspended_bytes=50)
    batches = (big, other, small)
    assert decide(*batches, waiting=[], scheduler=scheduler, current=big).batch_id == 1
    assert decide(*batches, waiting=[], scheduler=scheduler).batch_id == 2


@pytest.mark.parametrize("budget", [0, 5, 89])
def test_a_running_batch_that_breaks_the_budget_alone_is_preempted_and_nobody_is_dropped(budget):
    """Neither for an arrival, nor for one that stands suspended: no drop would make it fit."""
    big, small = holding(1, 10, held_bytes=90), holding(2, 10, due_s=9.0, held_bytes=0)
    scheduler = replace(SCHEDULER, max_suspended_bytes=budget)
    assert isinstance(decide(big, scheduler=scheduler, current=big), StartBatch)
    assert isinstance(decide(big, scheduler=scheduler), StartBatch)
    assert decide(big, small, waiting=[], scheduler=scheduler, current=big).batch_id == 2


def test_only_one_batch_at_a_time_may_break_the_budget():
    """Two that break it alone: the second makes way for a tighter deadline, as under any budget."""
    batches = [holding(1, 10, held_bytes=90), holding(2, 10, due_s=40.0, held_bytes=60)]
    scheduler = replace(SCHEDULER, max_suspended_bytes=50)
    assert dropped(decide(*batches, scheduler=scheduler, current=batches[1])) == [2]


def test_what_goes_before_the_needy_one_is_not_dropped_for_it_though_it_cannot_run_either():
    """It has to wait for the big one's end too; dropping it would turn the order upside down."""
    big = holding(1, 10, held_bytes=90)
    other = holding(3, 10, due_s=0.44, num_tokens=1100, held_bytes=95)
    ahead = holding(2, 10, due_s=0.45, num_tokens=1100, held_bytes=60)
    scheduler = replace(SCHEDULER, max_suspended_bytes=50)
    decision = decide(big, ahead, other, scheduler=scheduler, current=big)
    assert isinstance(decision, ResumeBatch)
    assert decision.batch_id == 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=8), st.integers(0, 120), st.data())
def test_bytes_summed_once_are_those_summed_for_each_batch(held, budget, data):
    """What suspended batches hold, by its definition: all but the one that is going to run."""
    batches = [holding(i, 10, held_bytes=bytes_) for i, bytes_ in enumerate(held)]
    but = data.draw(st.sampled_from([None, *batches]))
    others = [batch.held_bytes for batch in batches if batch is not but]
    too_big = max((bytes_ for bytes_ in others if bytes_ > budget), default=0)
    assert HeldBytes.of(batches).over(budget, but) == sum(others) - too_big - budget


# ---- decode and restarts ----


def test_decode_takes_memory_from_the_last_in_the_order_that_is_not_immune():
    """Running requests go first, restarts stay bounded."""
    early, late = holding(1, 10, due_s=20.0), holding(2, 10, due_s=30.0)
    immune = holding(3, 10, due_s=40.0, num_restarts=2)
    twin = holding(4, 10, due_s=30.0, run_s=0.5)
    victims = [
        SCHEDULER.choose_victim(RoundView(batches=batches), 0.0)
        for batches in ([early, late, immune], [late, twin], [immune], [])
    ]
    assert victims == [2, 4, None, None]


def test_the_last_restart_reserves_everything():
    """Whoever cannot be dropped must never get stuck."""
    answers = [
        SCHEDULER.must_reserve_all(replace(URGENT, num_restarts=number)) for number in range(4)
    ]
    assert answers == [False, False, True, True]
