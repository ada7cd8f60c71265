"""The simulator: the server's rules on a clock that jumps. One token is 1 ms unless said."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from sglang_flowprefill.core import (
    AdmissionControl,
    BatchState,
    ClassAttainment,
    DecodePacing,
    DegradedLast,
    EventKind,
    Fcfs,
    PrefillCost,
    PrefillDecider,
    SEdf,
    Slo,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.sim import Arrival, MachineModel, Simulation, simulate
from sglang_flowprefill.sim.machine import chunks_of
from sglang_flowprefill.testing import MS_PER_TOKEN, make_request

S_EDF = PrefillDecider(SEdf(), MS_PER_TOKEN, BatchLimits(max_tokens=200))
FCFS = replace(S_EDF, policy=Fcfs())
MACHINE = MachineModel(MS_PER_TOKEN, num_layers=10, decode_step_s=0.01)
LONGEST_OPERATOR_S = 0.42 / 10  # share of a layer, per second of prefill


def arrival(name, at_s, num_tokens, ttft_slo_s=1.0, **kwargs):
    """Return one arrival."""
    request = make_request(
        name, arrival_s=at_s, ttft_slo_s=ttft_slo_s, num_uncached_tokens=num_tokens
    )
    return Arrival(request, **kwargs)


def ttfts_s(result):
    """Return TTFT by request id."""
    return {outcome.request.request_id: outcome.ttft_s for outcome in result.outcomes}


DOCUMENT = arrival("document", 0.0, 8000, ttft_slo_s=60.0)
URGENT = arrival("urgent", 2.0, 100, ttft_slo_s=0.5)


def test_a_lone_prompt_takes_its_predicted_time():
    """Nothing is added by the division into operators."""
    result = simulate([DOCUMENT], S_EDF, MACHINE)
    assert ttfts_s(result) == pytest.approx({"document": 8.0})
    assert result.statistics.num_events == {EventKind.ARRIVAL: 1, EventKind.COMPLETION: 1}
    assert result.blocking_s == ()


def test_an_urgent_prompt_passes_a_long_one_and_nothing_is_lost():
    """The promise of the project: it waits for one operator; the document pays its 100 ms."""
    result = simulate([DOCUMENT, URGENT], S_EDF, MACHINE)
    ttft_s = ttfts_s(result)
    assert 0.1 <= ttft_s["urgent"] <= 0.1 + 8.0 * LONGEST_OPERATOR_S
    assert ttft_s["document"] == pytest.approx(8.1)
    assert [outcome.num_preemptions for outcome in result.outcomes] == [1, 0]
    assert result.statistics.num_preemptions == 1


def test_first_come_first_served_makes_the_urgent_prompt_wait():
    """The baseline that the promise is measured against."""
    result = simulate([DOCUMENT, URGENT], FCFS, MACHINE)
    assert ttfts_s(result) == pytest.approx({"document": 8.0, "urgent": 6.1})
    assert result.statistics.num_preemptions == 0


@pytest.mark.parametrize("num_tokens", [2000, 8000, 32000])
def test_blocking_time_is_at_most_one_operator(num_tokens):
    """However long the running prompt: with tiles, the longest operator does not grow with it."""
    cost = PrefillCost(0.0, 0.0, per_attention_pair_s=1e-6)
    machine = MachineModel(cost, num_layers=10, max_tile_s=0.03)
    document = arrival("document", 0.0, num_tokens, ttft_slo_s=1e6)
    urgent = [arrival(str(i), 0.05 + 0.1 * i, 10, ttft_slo_s=0.5) for i in range(15)]
    result = simulate([document, *urgent], replace(S_EDF, cost=cost), machine)
    assert result.blocking_s
    assert max(result.blocking_s) <= 0.03


def test_tiles_divide_attention_only_and_lose_nothing():
    """Same total, attention pieces no longer than asked."""
    cost = PrefillCost(0.1, 1e-3, 1e-6)
    requests = [make_request(num_uncached_tokens=1000, num_cached_tokens=500)]
    whole = MachineModel(cost, num_layers=4).layer_s(requests)
    tiled = MachineModel(cost, num_layers=4, max_tile_s=0.1).layer_s(requests)
    assert len(whole) == 7
    assert len(tiled) == 6 + 3  # a million pairs: 0.25 s per layer
    assert sum(whole) == pytest.approx(sum(tiled))
    assert 4 * sum(whole) == pytest.approx(cost.predict_s(requests))


def test_a_wrong_prediction_changes_the_machine_not_the_policys_belief():
    """The document takes twice as long as predicted and is preempted all the same."""
    slow = replace(DOCUMENT, slowdown=2.0)
    late = arrival("urgent", 10.0, 100, ttft_slo_s=0.9)  # the prediction ran out at 8 s
    scheduler = replace(S_EDF, min_preemption_gain_s=0.005)
    result = simulate([slow, late], scheduler, MACHINE)
    assert ttfts_s(result)["urgent"] <= 0.1 + 16.0 * LONGEST_OPERATOR_S
    assert ttfts_s(result)["document"] == pytest.approx(16.1)


def test_short_prompts_are_prefilled_together():
    """Requests that arrive together share a forward pass, within the token bound."""
    together = [arrival(str(i), 0.0, 60) for i in range(4)]
    result = simulate(together, S_EDF, MACHINE)
    assert list(ttfts_s(result).values()) == pytest.approx([0.18, 0.18, 0.18, 0.24])
    assert result.statistics.num_prefills == 2


def test_decode_steps_run_inside_a_long_prefill():
    """Tokens of running requests come at the TPOT objective, late by one operator at most."""
    chat = arrival("chat", 0.0, 100, num_output_tokens=11)
    document = replace(DOCUMENT, request=replace(DOCUMENT.request, arrival_s=0.05))
    result = simulate([chat, document], S_EDF, MACHINE, tpot_slo_s=0.2)
    times = [result.outcomes[0].first_token_s, *result.decode_ends_s]
    gaps = [after - before for before, after in pairwise(times)]
    assert len(gaps) == result.statistics.num_decode_steps == 10
    assert max(gaps) <= 0.2 + 8.0 * LONGEST_OPERATOR_S + 0.01
    assert result.outcomes[0].last_token_s == result.decode_ends_s[-1]
    assert result.statistics.num_events[EventKind.TIMER] == 10


def test_decode_runs_back_to_back_when_there_is_nothing_else():
    """Without prefills no step waits to be due."""
    result = simulate([arrival("chat", 0.0, 100, num_output_tokens=5)], S_EDF, MACHINE)
    assert result.outcomes[0].last_token_s == pytest.approx(0.1 + 4 * 0.01)


def test_a_doomed_prompt_finishes_within_the_starvation_bound():
    """An endless stream of urgent work cannot keep it out once it is old enough."""
    stream = [arrival(f"urgent {i}", 0.1 * i, 100, ttft_slo_s=0.3) for i in range(600)]
    doomed = arrival("doomed", 0.0, 3000, ttft_slo_s=1.0)  # its patience is its own 3 s
    kept_out = simulate([doomed, *stream], replace(S_EDF, policy=SEdf(1e9)), MACHINE)
    bounded = simulate([doomed, *stream], replace(S_EDF, policy=SEdf(10.0)), MACHINE)
    assert ttfts_s(kept_out)["doomed"] > 40.0
    assert ttfts_s(bounded)["doomed"] <= 10.0 * 3.0 + 3.0 + 0.2


def test_attainment_is_reported_by_class():
    """The statistics are those a server would report."""
    result = simulate(
        [DOCUMENT, URGENT, replace(URGENT, request=make_request("late", ttft_slo_s=0.01))],
        S_EDF,
        MACHINE,
    )
    assert result.statistics.attainment == {"default": ClassAttainment(3, 2)}


def test_order_of_the_arguments_does_not_matter():
    """Outcomes come in the order given; the history is decided by the arrival times."""
    forward, backward = (
        simulate(a, S_EDF, MACHINE) for a in ([DOCUMENT, URGENT], [URGENT, DOCUMENT])
    )
    assert forward.outcomes == backward.outcomes[::-1]


def test_an_empty_trace_is_fine():
    """Nothing arrives, nothing happens, no round is run."""
    result = simulate([], S_EDF, MACHINE)
    assert (result.outcomes, result.statistics.num_rounds) == ((), 0)


def test_ids_must_be_unique():
    """Two requests of one id could not be told apart in the outcomes."""
    with pytest.raises(ValueError, match="id of its own"):
        simulate([DOCUMENT, DOCUMENT], S_EDF, MACHINE)


# ---- memory ----


def test_without_memory_a_prompt_waits_for_the_running_request_to_end():
    """KV is held from the start of the prefill to the last token."""
    machine = replace(MACHINE, num_kv_tokens=8200)
    first = replace(DOCUMENT, num_output_tokens=11)  # holds 8,011
    second = arrival("second", 1.0, 500, ttft_slo_s=90.0)
    result = simulate([first, second], FCFS, machine)
    assert result.outcomes[0].last_token_s == pytest.approx(8.0 + 10 * 0.01)
    assert ttfts_s(result)["second"] == pytest.approx(8.1 + 0.5 - 1.0)
    assert result.max_kv_tokens == 8011


def test_a_dropped_prompt_starts_over_and_its_lost_time_is_counted():
    """The urgent one finds no memory, the document loses the two seconds that it has run."""
    machine = replace(MACHINE, num_kv_tokens=8050)
    result = simulate([DOCUMENT, URGENT], replace(S_EDF, max_restarts=1), machine)
    lost_s = result.statistics.lost_s
    assert 2.0 <= lost_s <= 2.0 + 8.0 * LONGEST_OPERATOR_S
    assert [outcome.num_restarts for outcome in result.outcomes] == [1, 0]
    assert result.outcomes[0].request == DOCUMENT.request
    assert ttfts_s(result)["urgent"] == pytest.approx(lost_s - 2.0 + 0.1)
    assert ttfts_s(result)["document"] == pytest.approx(lost_s + 0.1 + 8.0)
    assert (result.statistics.num_restarts, result.statistics.num_dropped) == (1, 1)
    assert result.statistics.num_cancelled == 0


def test_a_prompt_is_dropped_no_more_often_than_allowed():
    """After its last restart urgent prompts wait for the document's memory."""
    machine = replace(MACHINE, num_kv_tokens=8050)
    urgent = [replace(URGENT.request, request_id=str(i), arrival_s=i + 1.0) for i in range(4)]
    trace = [DOCUMENT, *map(Arrival, urgent)]
    for max_restarts in range(4):
        result = simulate(trace, replace(S_EDF, max_restarts=max_restarts), machine)
        assert result.outcomes[0].num_restarts == max_restarts
        num_late = sum(ttfts_s(result)[str(i)] > 0.5 for i in range(4))
        assert num_late == 4 - max_restarts


def test_an_urgent_prompt_that_fits_does_not_wait_behind_a_long_one_that_does_not():
    """Only those behind the blocked one in the order wait with it."""
    machine = replace(MACHINE, num_kv_tokens=8200)
    blocked = arrival("blocked", 1.0, 4000, ttft_slo_s=50.0)
    result = simulate([DOCUMENT, blocked, URGENT], S_EDF, machine)
    assert ttfts_s(result)["urgent"] <= 0.1 + 8.0 * LONGEST_OPERATOR_S
    assert ttfts_s(result)["blocked"] == pytest.approx(8.1 + 4.0 - 1.0)


def test_a_long_prompt_runs_in_chunks_and_takes_memory_as_it_goes():
    """Its forward passes follow each other; each holds what has been computed so far."""
    machine = replace(MACHINE, max_chunk_tokens=3000, num_kv_tokens=8001)
    chunks = chunks_of((DOCUMENT.request,), machine.max_chunk_tokens)
    assert [(c.num_uncached_tokens, c.num_cached_tokens) for (c,) in chunks] == [
        (3000, 0),
        (3000, 3000),
        (2000, 6000),
    ]
    result = simulate([DOCUMENT], S_EDF, machine)
    assert ttfts_s(result) == pytest.approx({"document": 8.0})
    assert result.statistics.num_prefills == 1


def test_two_prompts_that_each_hold_half_of_the_memory_both_finish():
    """Chunks let both start; one of them has to give its half back."""
    machine = replace(MACHINE, max_chunk_tokens=1000, num_kv_tokens=6100)
    first = arrival("first", 0.0, 6000, ttft_slo_s=60.0)
    second = arrival("second", 3.5, 4000, ttft_slo_s=10.0)
    for max_restarts, num_restarts in ((0, 0), (2, 1)):
        scheduler = replace(S_EDF, max_restarts=max_restarts)
        result = simulate([first, second], scheduler, machine)
        assert result.statistics.num_restarts == num_restarts
        assert result.max_kv_tokens <= 6100


def test_a_request_that_can_never_fit_is_refused():
    """A server refuses it too; here it would wait for ever."""
    with pytest.raises(ValueError, match="8000 KV slots"):
        simulate([DOCUMENT], S_EDF, replace(MACHINE, num_kv_tokens=8000))


# ---- decode beside prefills ----


def chat_and_document(**slo):
    """Return a chat that decodes ten tokens beside a document, with objectives of its own."""
    chat = arrival("chat", 0.0, 100, num_output_tokens=11)
    chat = replace(chat, request=replace(chat.request, slo=Slo(1.0, **slo)))
    return [chat, replace(DOCUMENT, request=replace(DOCUMENT.request, arrival_s=0.05))]


@pytest.mark.parametrize("tpot_s", [0.1, 0.5])
def test_tokens_come_at_the_objective_of_the_request(tpot_s):
    """Not at the server's default, and not later than one operator after."""
    result = simulate(chat_and_document(tpot_s=tpot_s), S_EDF, MACHINE, tpot_slo_s=0.2)
    longest_s = 8.0 * LONGEST_OPERATOR_S
    assert tpot_s - 0.01 <= result.outcomes[0].max_gap_s <= tpot_s + longest_s


def test_with_the_way_to_a_boundary_known_tokens_are_in_time():
    """A step that is due earlier by one operator meets its objective exactly."""
    pacing = DecodePacing(blocking_s=8.0 * LONGEST_OPERATOR_S)
    result = simulate(chat_and_document(tpot_s=0.5), S_EDF, MACHINE, pacing=pacing)
    assert 0.4 < result.outcomes[0].max_gap_s <= 0.5


def test_decode_that_cannot_be_in_time_leaves_prefills_their_share():
    """An impossible TPOT objective does not stop the document."""
    machine = replace(MACHINE, decode_step_s=0.1)
    chat, document = chat_and_document(tpot_s=0.01)
    chat = replace(chat, num_output_tokens=200)
    pacing = DecodePacing(min_prefill_share=0.5)
    result = simulate([chat, document], S_EDF, machine, pacing=pacing)
    assert ttfts_s(result)["document"] <= 2 * 8.0 + 0.5


@pytest.mark.parametrize(
    ("max_delay_factor", "decode_first", "is_in_time"),
    [(3.0, False, True), (1.0, False, False), (3.0, True, False)],
)
def test_a_first_token_in_danger_goes_before_a_due_decode_step_unless_the_class_forbids(
    max_delay_factor, decode_first, is_in_time
):
    """A step of 0.3 s is due at 1.9 s, in the middle of an urgent prompt that has 0.05 s left."""
    machine = replace(MACHINE, num_layers=1000, decode_step_s=0.3)
    trace = chat_and_document(tpot_s=0.7, decode_first=decode_first)
    urgent = replace(URGENT, request=replace(URGENT.request, arrival_s=1.85, slo=Slo(0.15)))
    pacing = DecodePacing(max_delay_factor=max_delay_factor)
    result = simulate([*trace, urgent], S_EDF, machine, pacing=pacing)
    assert (ttfts_s(result)["urgent"] <= 0.15) is is_in_time
    longest_wait_s = 0.1 if is_in_time else 0.01
    assert 0.7 <= result.outcomes[0].max_gap_s <= 0.7 + longest_wait_s


def test_a_batched_step_takes_longer_with_every_request_in_it():
    """Ten decode together in one step each."""
    machine = replace(MACHINE, decode_step_s=0.01, decode_request_s=0.002)
    together = [arrival(str(i), 0.0, 20, num_output_tokens=3) for i in range(10)]
    result = simulate(together, S_EDF, machine)
    assert result.statistics.num_decode_steps == 2
    assert result.outcomes[0].last_token_s == pytest.approx(0.2 + 2 * 0.03)


# ---- admission ----


def overload(num_requests=60):
    """Return twice as much work as there is time for."""
    return [arrival(str(i), 0.1 * i, 200, ttft_slo_s=1.05) for i in range(num_requests)]


def num_in_time(result):
    """Count first tokens within the objective."""
    return sum(outcome.ttft_s <= outcome.request.slo.ttft_s for outcome in result.outcomes)


def test_under_overload_rejecting_the_hopeless_keeps_the_others_in_time():
    """Whoever is admitted is in time, and as many are as the machine can serve."""
    scheduler = replace(S_EDF, limits=BatchLimits(1))
    result = simulate(overload(), scheduler, MACHINE, admission=AdmissionControl("reject"))
    rejected = [outcome for outcome in result.outcomes if outcome.is_rejected]
    assert 20 <= len(rejected) <= 30
    assert num_in_time(result) == 60 - len(rejected)
    assert all(outcome.first_token_s == math.inf for outcome in rejected)


def test_degrading_serves_everybody_and_makes_nobody_late_who_need_not_be():
    """The same as rejecting for those in time; the others come after."""
    policy = DegradedLast(SEdf(), patience=1e9)
    scheduler = replace(S_EDF, limits=BatchLimits(1), policy=policy)
    reject = simulate(overload(), scheduler, MACHINE, admission=AdmissionControl("reject"))
    degrade = simulate(overload(), scheduler, MACHINE, admission=AdmissionControl("degrade"))
    assert num_in_time(degrade) >= num_in_time(reject)
    assert all(outcome.last_token_s < math.inf for outcome in degrade.outcomes)


def test_the_queue_is_never_longer_than_its_bound():
    """Rejected are those that arrive while it is full."""
    together = [arrival(str(i), 0.0, 200, ttft_slo_s=9.0) for i in range(10)]
    control = AdmissionControl(max_waiting=4)
    result = simulate(together, replace(S_EDF, limits=BatchLimits(1)), MACHINE, admission=control)
    assert [outcome.is_rejected for outcome in result.outcomes] == [False] * 4 + [True] * 6


# ---- aborts ----


def test_an_aborted_prefill_stops_at_the_next_boundary_and_gives_its_memory_back():
    """The next prompt starts at once, though both together would not fit."""
    machine = replace(MACHINE, num_kv_tokens=8100)
    leaver = replace(DOCUMENT, abort_s=3.0)
    second = arrival("second", 1.0, 4000, ttft_slo_s=90.0)
    result = simulate([leaver, second], S_EDF, machine)
    assert result.outcomes[0].is_aborted
    assert result.outcomes[0].first_token_s == math.inf
    wait_s = ttfts_s(result)["second"] - (3.0 - 1.0) - 4.0
    assert 0.0 <= wait_s <= 8.0 * LONGEST_OPERATOR_S
    assert result.statistics.num_cancelled == 1


def test_a_batch_with_a_live_member_runs_on():
    """The forward pass needs all of its rows; only the aborted one gets no token."""
    stays, leaves = arrival("stays", 0.0, 100), arrival("leaves", 0.0, 100, abort_s=0.05)
    result = simulate([stays, leaves], S_EDF, MACHINE)
    assert [outcome.is_aborted for outcome in result.outcomes] == [False, True]
    assert ttfts_s(result)["stays"] == pytest.approx(0.2)
    assert result.statistics.attainment == {"default": ClassAttainment(1, 1)}


@pytest.mark.parametrize(
    ("abort_s", "has_first_token"), [(-1.0, False), (0.0, False), (0.3, True), (99.0, True)]
)
def test_a_client_may_leave_at_any_time(abort_s, has_first_token):
    """Before its arrival, while it waits, while it decodes, or when all is over."""
    blocker = arrival("blocker", 0.0, 100, ttft_slo_s=0.5)
    leaver = arrival("leaver", 0.0, 150, num_output_tokens=50, abort_s=abort_s)
    result = simulate([blocker, leaver], S_EDF, MACHINE)
    outcome = result.outcomes[1]
    assert (outcome.first_token_s < math.inf) is has_first_token
    assert outcome.is_aborted is (abort_s < 99.0)
    assert ttfts_s(result)["blocker"] == pytest.approx(0.1)


# ---- step by step ----


def test_a_simulation_can_be_driven_step_by_step():
    """What comes later may depend on what has happened so far; the history is the same."""
    simulation = Simulation(S_EDF, MACHINE)
    simulation.add(DOCUMENT)
    simulation.run(until_s=1.0)
    assert 1.0 <= simulation.now_s <= 1.0 + 8.0 * LONGEST_OPERATOR_S
    assert [batch.state for batch in simulation.prefills] == [BatchState.SUSPENDED]
    simulation.add(URGENT)
    simulation.run()
    assert not simulation.has_work
    whole = simulate([DOCUMENT, URGENT], S_EDF, MACHINE)
    assert simulation.outcomes == {o.request.request_id: o for o in whole.outcomes}
    assert tuple(simulation.blocking_s) == whole.blocking_s
