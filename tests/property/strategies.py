"""Hypothesis strategies: traces, machines and policies."""

from hypothesis import strategies as st

from sglang_flowprefill.core import (
    POLICIES,
    PrefillCost,
    PrefillDecider,
    SEdf,
    make_policy,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.sim import Arrival, MachineModel
from sglang_flowprefill.testing import make_request

# A binary fraction: arrivals, deadlines and predictions tie exactly where they tie.
TICK_S = 1 / 64

COST = PrefillCost(base_s=TICK_S, per_token_s=TICK_S / 8, per_attention_pair_s=TICK_S / 4096)


@st.composite
def arrivals(draw, max_size=12, **fixed):
    """Draw a trace; a fixed field replaces what would be drawn for it."""
    lengths = st.one_of(st.integers(1, 64), st.integers(64, 2000))
    trace = []
    for index in range(draw(st.integers(1, max_size))):
        request = make_request(
            str(index),
            arrival_s=fixed.get("arrival_s", draw(st.integers(0, 400)) * TICK_S),
            ttft_slo_s=draw(st.sampled_from([0.25, 0.5, 1.0, 4.0, 30.0])),
            num_uncached_tokens=draw(lengths),
            num_cached_tokens=draw(st.sampled_from([0, 0, 500])),
        )
        num_output_tokens = fixed.get("num_output_tokens", draw(st.integers(1, 4)))
        slowdown = fixed.get("slowdown", draw(st.sampled_from([0.5, 1.0, 1.0, 2.0])))
        trace.append(Arrival(request, num_output_tokens, slowdown))
    return trace


def machines(**fixed):
    """Draw a machine; a fixed field is not drawn."""
    drawn = {
        "num_layers": st.sampled_from([1, 4]),
        "max_tile_s": st.sampled_from([0.02, 1e9]),
        "decode_step_s": st.sampled_from([0.0, TICK_S, 0.5]),
    }
    drawn.update(_as_strategies(fixed))
    return st.builds(MachineModel, cost=st.just(COST), **drawn)


all_policies = tuple(POLICIES)


def policy_of(name):
    """Draw a policy of this name."""
    if name == "s-edf":
        return st.builds(SEdf, starvation_factor=st.sampled_from([1.0, 3.0, 10.0]))
    return st.just(make_policy(name))


def schedulers(scheduler_type, *, policies=("s-edf", "fcfs"), **fixed):
    """Draw parameters of a scheduler; a fixed one is not drawn, unless it is a strategy."""
    drawn = {
        "policy": st.one_of([policy_of(name) for name in policies]),
        "limits": st.builds(BatchLimits, max_tokens=st.sampled_from([1, 128, 1024])),
        "max_suspended": st.integers(1, 4),
        "min_preemption_gain_s": st.sampled_from([0.0, 2 * TICK_S]),
    }
    drawn.update(_as_strategies(fixed))
    return st.builds(scheduler_type, cost=st.just(COST), **drawn)


def plain_schedulers(**kwargs):
    """Draw a ``PrefillDecider``."""
    return schedulers(PrefillDecider, **kwargs)


def _as_strategies(fixed):
    return {
        name: value if isinstance(value, st.SearchStrategy) else st.just(value)
        for name, value in fixed.items()
    }
