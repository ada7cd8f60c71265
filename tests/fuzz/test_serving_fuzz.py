"""A hundred thousand events on random servers, from fixed seeds.

Seed 8 once preempted a batch more often than allowed (one that lacked memory for its next chunk was
counted), seed 9 waited for a request that had left before its arrival.
"""

import math
import random

import pytest

from sglang_flowprefill.core import (
    POLICIES,
    AdmissionControl,
    DecodePacing,
    DegradedLast,
    PrefillCost,
    PrefillDecider,
    make_policy,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.sim import Arrival, MachineModel, Simulation
from sglang_flowprefill.testing import assert_accounted_for, make_request

NUM_EVENTS = 100_000
SEEDS = range(10)
COST = PrefillCost(base_s=0.002, per_token_s=1e-4, per_attention_pair_s=1e-8, per_request_s=1e-4)
NUM_KV_TOKENS = 6000
_CLASSES = [(0.05, 100), (0.25, 600), (4.0, 4000), (30.0, 5000)]


def random_scheduler(rng):
    """Return a scheduler with every feature on or off, and a predictor that is off by a factor."""
    policy = make_policy(rng.choice(list(POLICIES)))
    return PrefillDecider(
        DegradedLast(policy) if rng.random() < 0.3 else policy,
        COST.scaled(rng.choice([0.3, 1.0, 1.0, 3.0])),
        BatchLimits(rng.choice([1, 256, 2048])),
        max_suspended=rng.randint(1, 8),
        min_preemption_gain_s=rng.choice([0.0, 0.01]),
        max_suspended_bytes=rng.choice([3000, math.inf]),
        max_restarts=rng.randint(0, 3),
        max_preemptions=rng.choice([1, 5, math.inf]),
        preemption_margin_s=rng.choice([0.0, 0.05]),
        lazy_fraction=rng.choice([1.0, 0.9]),
    )


def random_simulation(rng, scheduler):
    """Return a server with little memory."""
    machine = MachineModel(
        COST,
        num_layers=rng.choice([1, 2]),
        decode_step_s=rng.choice([0.001, 0.01]),
        decode_request_s=0.0005,
        num_kv_tokens=NUM_KV_TOKENS,
        max_chunk_tokens=rng.choice([None, 500, 2000]),
        bytes_per_token=1,
    )
    return Simulation(
        scheduler,
        machine,
        tpot_slo_s=rng.choice([0.02, 0.1]),
        pacing=DecodePacing(max_delay_factor=rng.choice([1.0, 2.0])),
        admission=AdmissionControl(rng.choice(["off", "degrade"]), rng.choice([None, 50])),
    )


def random_arrival(rng, index, now_s):
    """Return an arrival; one in ten leaves early, and no duration is as predicted."""
    ttft_slo_s, longest = rng.choice(_CLASSES)
    request = make_request(
        str(index),
        arrival_s=now_s,
        ttft_slo_s=ttft_slo_s,
        num_uncached_tokens=rng.randint(1, longest),
    )
    abort_s = now_s + rng.expovariate(1.0) if rng.random() < 0.1 else math.inf
    return Arrival(request, rng.choice([1, 2, 8]), math.exp(rng.gauss(0.0, 0.3)), abort_s)


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_thousand_events_break_no_promise(seed):
    """Bursts and lulls, aborts, overload: everybody ends, within every bound."""
    rng = random.Random(seed)
    scheduler = random_scheduler(rng)
    simulation = random_simulation(rng, scheduler)
    ids, now_s = [], 0.0
    while sum(simulation.statistics.statistics().num_events.values()) < NUM_EVENTS // len(SEEDS):
        for _ in range(rng.randint(1, 40)):
            now_s += rng.expovariate(rng.choice([2.0, 20.0]))
            arrival = random_arrival(rng, len(ids), now_s)
            ids.append(arrival.request.request_id)
            simulation.add(arrival)
        # Until the queue is short, so that the run is about bursts and not about one pile.
        while simulation.has_work and len(simulation.waiting) + simulation.num_coming > 10:
            simulation.run(until_s=simulation.now_s + 1.0)
            assert_accounted_for(simulation, ids, scheduler, NUM_KV_TOKENS)
        now_s = max(now_s, simulation.now_s)
    simulation.run()
    assert set(simulation.outcomes) == set(ids)
    assert simulation.kv.num_used == 0
    statistics = simulation.statistics.statistics()
    assert statistics.num_rounds <= sum(statistics.num_events.values())
    finished = [o for o in simulation.outcomes.values() if not (o.is_aborted or o.is_rejected)]
    assert all(o.request.arrival_s < o.first_token_s <= o.last_token_s < math.inf for o in finished)
