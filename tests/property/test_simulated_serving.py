"""What must hold for every trace, machine and policy. Driven through the simulator."""

from collections import Counter
from itertools import pairwise

import pytest
from checked_scheduler import CheckedScheduler
from hypothesis import given, settings
from strategies import TICK_S, arrivals, machines, schedulers

from sglang_flowprefill.core import EventKind
from sglang_flowprefill.core.policy import MIN_PATIENCE_S
from sglang_flowprefill.sim import simulate

TPOT_SLO_S = 8 * TICK_S

many = settings(max_examples=150, deadline=None)


def serve(trace, scheduler, machine):
    """Run a trace; the scheduler checks each decision."""
    return simulate(trace, scheduler, machine, tpot_slo_s=TPOT_SLO_S)


def starving_from_s(victim, scheduler):
    """Return when a request has waited for as long as it has to."""
    patience_s = max(victim.slo.ttft_s, scheduler.predict_s([victim]), MIN_PATIENCE_S)
    return victim.arrival_s + scheduler.policy.starvation_factor * patience_s


def longest_operator_s(trace, scheduler, machine):
    """Return the longest operator of all batches that were started."""
    slowdowns = {arrival.request: arrival.slowdown for arrival in trace}
    return max(
        max(machine.layer_s(batch, max(slowdowns[request] for request in batch)))
        for batch in scheduler.started
    )


@many
@given(arrivals(), schedulers(CheckedScheduler), machines())
def test_every_request_is_prefilled_once_and_finishes_once(trace, scheduler, machine):
    """None is lost, doubled or run twice; every decision keeps the policy's order and bounds."""
    result = serve(trace, scheduler, machine)
    ids = [arrival.request.request_id for arrival in trace]
    started = Counter(request.request_id for batch in scheduler.started for request in batch)
    assert started == Counter(ids)
    assert [outcome.request.request_id for outcome in result.outcomes] == ids
    assert result.statistics.num_prefills == len(scheduler.started)
    assert sum(a.num_finished for a in result.statistics.attainment.values()) == len(trace)
    for outcome in result.outcomes:
        assert outcome.request.arrival_s < outcome.first_token_s <= outcome.last_token_s


@many
@given(arrivals(), schedulers(CheckedScheduler), machines())
def test_rounds_are_caused_by_events(trace, scheduler, machine):
    """Never more rounds than events, and each kind of event as often as it happened."""
    statistics = serve(trace, scheduler, machine).statistics
    assert statistics.num_rounds <= sum(statistics.num_events.values())
    num_ends = statistics.num_prefills + statistics.num_decode_steps
    assert statistics.num_events[EventKind.ARRIVAL] == len(trace)
    assert statistics.num_events[EventKind.COMPLETION] == num_ends
    # A timer is set for a decode step, and for the end of the slack that a late prefill may use.
    num_timers = statistics.num_events.get(EventKind.TIMER, 0)
    num_slices = statistics.num_prefills + statistics.num_resumes
    assert num_timers <= statistics.num_decode_steps + num_slices


@many
@given(arrivals(), schedulers(CheckedScheduler), machines())
def test_blocking_time_is_at_most_one_operator(trace, scheduler, machine):
    """Whoever has to wait for a running prefill waits for the next boundary, no longer."""
    result = serve(trace, scheduler, machine)
    longest_s = longest_operator_s(trace, scheduler, machine)
    assert all(0.0 <= seconds <= longest_s + 1e-9 for seconds in result.blocking_s)


@many
@given(
    arrivals(arrival_s=0.0, num_output_tokens=1, slowdown=1.0),
    schedulers(CheckedScheduler),
    machines(),
)
def test_no_work_is_done_twice_and_the_machine_never_idles(trace, scheduler, machine):
    """A trace that is there from the start takes exactly the time of its forward passes."""
    result = serve(trace, scheduler, machine)
    work_s = sum(scheduler.predict_s(batch) for batch in scheduler.started)
    assert max(o.first_token_s for o in result.outcomes) == pytest.approx(work_s)


@many
@given(
    arrivals(num_output_tokens=1),
    schedulers(CheckedScheduler, policies=("s-edf",), max_suspended=16),
    machines(),
)
def test_a_starving_request_is_overtaken_by_nobody_new(trace, scheduler, machine):
    """Past its bound a request waits only for work started before, or due earlier than itself.

    Which bounds its first token: the rest of what has started, and a finite set of requests.
    """
    result = serve(trace, scheduler, machine)
    for outcome in result.outcomes:
        victim = outcome.request
        starving_s = starving_from_s(victim, scheduler)
        for (head, *_), start_s in zip(scheduler.started, scheduler.started_s, strict=True):
            if start_s > starving_s and head.deadline_s > victim.deadline_s:
                assert outcome.first_token_s <= start_s


@many
@given(
    arrivals(num_output_tokens=1, slowdown=1.0),
    schedulers(CheckedScheduler, policies=("s-edf",)),
    machines(),
)
def test_a_first_token_comes_within_the_stated_bound(trace, scheduler, machine):
    """However overloaded: a multiple of the own SLO, and work that later arrivals do not add to.

    That is, batches started before, those with a head that is due earlier, and its own.
    """
    result = serve(trace, scheduler, machine)
    for outcome in result.outcomes:
        victim = outcome.request
        starving_s = starving_from_s(victim, scheduler)
        work_s = sum(
            scheduler.predict_s(batch)
            for batch, start_s in zip(scheduler.started, scheduler.started_s, strict=True)
            if start_s <= starving_s or batch[0].deadline_s <= victim.deadline_s or victim in batch
        )
        assert outcome.first_token_s <= starving_s + work_s + 1e-9


@many
@given(
    arrivals(num_output_tokens=1),
    schedulers(
        CheckedScheduler, policies=("s-edf",), max_preemptions=2, preemption_margin_s=2 * TICK_S
    ),
    machines(),
)
def test_nobody_is_preempted_more_often_than_allowed(trace, scheduler, machine):
    """And never for less than the margin."""
    result = serve(trace, scheduler, machine)
    assert all(outcome.num_preemptions <= 2 for outcome in result.outcomes)


@many
@given(arrivals(), schedulers(CheckedScheduler, policies=("fcfs",)), machines())
def test_fcfs_starts_heads_in_order_of_arrival_and_never_preempts(trace, scheduler, machine):
    """The baseline is what its name says."""
    result = serve(trace, scheduler, machine)
    heads = [batch[0].arrival_s for batch in scheduler.started]
    assert heads == sorted(heads)
    assert result.statistics.num_preemptions == 0


@many
@given(arrivals(), schedulers(CheckedScheduler), machines())
def test_preemptions_are_counted_once(trace, scheduler, machine):
    """The total is the sum over batches; nothing is preempted without an arrival or a switch."""
    result = serve(trace, scheduler, machine)
    preemptions = {o.request.request_id: o.num_preemptions for o in result.outcomes}
    by_batch = sum(preemptions[batch[0].request_id] for batch in scheduler.started)
    assert by_batch == result.statistics.num_preemptions


@many
@given(arrivals(), schedulers(CheckedScheduler), machines())
def test_equal_arguments_give_equal_histories(trace, scheduler, machine):
    """No clock, no randomness, no memory between runs."""
    assert serve(trace, scheduler, machine) == serve(trace, scheduler, machine)


@many
@given(arrivals(), schedulers(CheckedScheduler, policies=("s-edf",)), machines())
def test_decode_is_never_late_by_more_than_one_operator(trace, scheduler, machine):
    """Between two tokens of a running request lies the objective, one operator and one step."""
    result = serve(trace, scheduler, machine)
    longest_s = longest_operator_s(trace, scheduler, machine)
    bound_s = TPOT_SLO_S + longest_s + machine.decode_step_s + 1e-9
    for outcome in result.outcomes:
        steps = [
            t for t in result.decode_ends_s if outcome.first_token_s < t <= outcome.last_token_s
        ]
        times = [outcome.first_token_s, *steps]
        assert all(b - a <= bound_s for a, b in pairwise(times))
