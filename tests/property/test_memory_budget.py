"""Whatever the sizes, arrivals and policy: memory is never exceeded and everybody finishes."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import TICK_S, all_policies, arrivals, machines, plain_schedulers

from sglang_flowprefill.core import EventKind
from sglang_flowprefill.sim import simulate
from sglang_flowprefill.sim.machine import chunks_of

many = settings(max_examples=150, deadline=None)


@st.composite
def tight_machines(draw, trace):
    """Draw a machine in which the largest request fits, and little beside it."""
    largest = max(arrival.num_kv_tokens for arrival in trace)
    return draw(
        machines(
            num_kv_tokens=largest + draw(st.sampled_from([0, 1, 100, 2000])),
            max_chunk_tokens=draw(st.sampled_from([None, 50, 300, 1000])),
            bytes_per_token=draw(st.sampled_from([0, 1])),
        )
    )


tight_schedulers = plain_schedulers(
    policies=all_policies,
    max_suspended_bytes=st.sampled_from([0, 500, 1e9]),
    max_restarts=st.integers(0, 3),
)


@many
@given(st.data(), arrivals(), tight_schedulers)
def test_everybody_finishes_within_the_memory_and_a_bounded_number_of_restarts(
    data, trace, scheduler
):
    """No deadlock, no livelock: the simulation ends, in time for all work and all restarts."""
    machine = data.draw(tight_machines(trace))
    result = simulate(trace, scheduler, machine, tpot_slo_s=8 * TICK_S)
    restarts = Counter({o.request.request_id: o.num_restarts for o in result.outcomes})
    assert [o.request for o in result.outcomes] == [a.request for a in trace]
    assert result.max_kv_tokens <= machine.num_kv_tokens
    assert all(number <= scheduler.max_restarts for number in restarts.values())
    assert restarts.total() == result.statistics.num_restarts
    assert result.statistics.num_rounds <= sum(result.statistics.num_events.values())
    assert result.statistics.num_dropped <= result.statistics.num_events.get(EventKind.KV_FREED, 0)
    assert EventKind.ABORT not in result.statistics.num_events
    assert result.statistics.num_cancelled == 0
    assert last_end_s(result) <= bound_s(trace, scheduler, machine, result)


@many
@given(st.data(), arrivals(num_output_tokens=1, slowdown=1.0), tight_schedulers)
def test_all_time_is_spent_on_prefills_that_end_or_is_counted_as_lost(data, trace, scheduler):
    """The machine is busy from the last arrival on, and every second of it is accounted for."""
    machine = data.draw(tight_machines(trace))
    result = simulate(trace, scheduler, machine, tpot_slo_s=8 * TICK_S)
    alone_s = sum(seconds_alone(arrival, machine) for arrival in trace)
    last_arrival_s = max(arrival.request.arrival_s for arrival in trace)
    assert last_end_s(result) <= last_arrival_s + alone_s + result.statistics.lost_s + 1e-9
    if result.statistics.num_restarts == 0:
        assert result.statistics.lost_s == 0.0


def last_end_s(result):
    """Return when the last request ended."""
    return max(outcome.last_token_s for outcome in result.outcomes)


def seconds_alone(arrival, machine):
    """Return the prefill time of a request by itself: batches only share the base."""
    chunks = chunks_of((arrival.request,), machine.max_chunk_tokens)
    return sum(machine.forward(chunk, arrival.slowdown).total_s for chunk in chunks)


def bound_s(trace, scheduler, machine, result):
    """Return the time by which all is done if nobody ever idles with work at hand."""
    slowest = max(arrival.slowdown for arrival in trace)
    work_s = sum(seconds_alone(arrival, machine) / arrival.slowdown for arrival in trace)
    prefill_s = (1 + scheduler.max_restarts) * slowest * work_s
    decode_s = result.statistics.num_decode_steps * machine.decode_step_s
    return max(a.request.arrival_s for a in trace) + prefill_s + decode_s + 1e-6
