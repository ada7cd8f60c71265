"""A server under arbitrary arrivals, aborts and wrong predictions, looked at after every step."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from strategies import TICK_S, all_policies, machines, schedulers

from sglang_flowprefill.core import (
    AdmissionControl,
    DecodePacing,
    DropBatches,
    PrefillDecider,
)
from sglang_flowprefill.sim import Arrival, Simulation
from sglang_flowprefill.testing import assert_accounted_for, make_request

NUM_KV_TOKENS = 3000


@dataclass(frozen=True)
class DropsForTheLiving(PrefillDecider):
    """Checks that whatever is dropped for memory is dropped for a request that still waits for it.

    Attributes:
        gone: Ids of requests whose clients have left.
    """

    gone: set = field(default_factory=set)

    def decide(self, view, now_s):
        """Decide as always, then check."""
        decision = super().decide(view, now_s)
        if isinstance(decision, DropBatches):
            kept = [b for b in view.batches if b.batch_id not in decision.batch_ids]
            needy = [*view.waiting, *(r for b in kept for r in b.requests)]
            assert any(r.request_id not in self.gone for r in needy), "dropped for nobody"
            if view.blocked is not None:
                assert view.blocked.request in view.waiting, "dropped for one that is gone"
        return decision


class ServerLife(RuleBasedStateMachine):
    """Rules are what users do and time; invariants are what they may rely on."""

    @initialize(
        scheduler=schedulers(
            DropsForTheLiving,
            policies=all_policies,
            max_restarts=st.integers(0, 2),
            max_preemptions=st.sampled_from([1, 3, 1e9]),
            max_suspended_bytes=st.sampled_from([500, 1e9]),
        ),
        machine=machines(
            num_kv_tokens=NUM_KV_TOKENS,
            max_chunk_tokens=st.sampled_from([None, 200]),
            bytes_per_token=1,
        ),
        pacing=st.builds(DecodePacing, max_delay_factor=st.sampled_from([1.0, 3.0])),
        admission=st.builds(
            AdmissionControl,
            mode=st.sampled_from(["off", "off", "reject", "degrade"]),
            max_waiting=st.sampled_from([None, 3]),
        ),
    )
    def start(self, scheduler, machine, pacing, admission):
        """Start a server."""
        self.scheduler = scheduler
        self.scheduler.gone.clear()
        self.ids = []
        self.simulation = Simulation(
            scheduler, machine, tpot_slo_s=8 * TICK_S, pacing=pacing, admission=admission
        )

    @rule(
        num_tokens=st.one_of(st.integers(1, 64), st.integers(64, 2000)),
        ttft_slo_s=st.sampled_from([0.25, 1.0, 30.0]),
        num_output_tokens=st.integers(1, 4),
        slowdown=st.sampled_from([0.3, 0.5, 1.0, 1.0, 2.0, 3.0]),
    )
    def arrive(self, num_tokens, ttft_slo_s, num_output_tokens, slowdown):
        """A request comes now; its prediction may be far off."""
        request = make_request(
            str(len(self.ids)),
            arrival_s=self.simulation.now_s,
            ttft_slo_s=ttft_slo_s,
            num_uncached_tokens=num_tokens,
        )
        self.ids.append(request.request_id)
        self.simulation.add(Arrival(request, num_output_tokens, slowdown))

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def abort(self, data):
        """A client leaves, wherever its request may be by now."""
        request_id = data.draw(st.sampled_from(self.ids))
        self.scheduler.gone.add(request_id)
        self.simulation.abort(request_id, self.simulation.now_s)

    @rule(num_ticks=st.sampled_from([1, 1, 4, 64, 1000]))
    def wait(self, num_ticks):
        """Time passes."""
        simulation = self.simulation
        simulation.run(until_s=simulation.now_s + num_ticks * TICK_S)

    @invariant()
    def nothing_is_lost_or_exceeded(self):
        """Every request is in one place, and every bound holds."""
        if hasattr(self, "simulation"):
            assert_accounted_for(self.simulation, self.ids, self.scheduler, NUM_KV_TOKENS)

    def teardown(self):
        """Whatever happened before, everybody ends, and all memory is free."""
        if not hasattr(self, "simulation"):
            return
        self.simulation.run()
        assert Counter(self.ids) == Counter(self.simulation.outcomes.keys())
        assert self.simulation.kv.num_used == 0


ServerLife.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestServerLife = ServerLife.TestCase
