"""Fakes and builders for tests of this package and of code on top of it. Unstable.

Imports neither torch nor sglang. Names and signatures may change in any release; nothing here is
part of the public surface.
"""

from collections.abc import Sequence
from typing import Any

from sglang_flowprefill.core import (
    BatchState,
    PrefillBatch,
    PrefillCost,
    PrefillDecider,
    PrefillRequest,
    Slo,
)
from sglang_flowprefill.core.batch import BatchChange

MS_PER_TOKEN = PrefillCost(base_s=0.0, per_token_s=0.001, per_attention_pair_s=0.0)
"""A machine on which n tokens take n milliseconds, so that tests can be checked by eye."""


class ManualClock:
    """A clock that moves when told to. Call it for the time in seconds."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


def make_request(
    request_id: str = "request",
    *,
    arrival_s: float = 0.0,
    ttft_slo_s: float = 1.0,
    class_name: str = "default",
    num_uncached_tokens: int = 100,
    num_cached_tokens: int = 0,
) -> PrefillRequest:
    """Return a request; 100 tokens at time 0 with one second to go unless told otherwise."""
    slo = Slo(ttft_slo_s, class_name)
    return PrefillRequest(request_id, arrival_s, slo, num_uncached_tokens, num_cached_tokens)


def make_batch(
    *requests: PrefillRequest,
    batch_id: int = 0,
    run_s: float = 0.0,
    cost: PrefillCost = MS_PER_TOKEN,
) -> PrefillBatch:
    """Return a batch that has run for ``run_s`` seconds and is suspended, or is ready if 0."""
    batch = PrefillBatch(batch_id, requests, cost.predict_s(requests))
    if run_s > 0.0:
        batch.apply(BatchChange.RESUME, 0.0)
        batch.apply(BatchChange.YIELD, run_s)
    return batch


def assert_accounted_for(
    simulation: Any, ids: Sequence[str], scheduler: PrefillDecider, num_kv_tokens: int
) -> None:
    """Check that nobody is lost or in two places, and that every bound holds at this moment.

    Args:
        simulation: A ``sim.Simulation`` between two steps.
        ids: Of all requests that were added.
        scheduler: Its scheduler.
        num_kv_tokens: KV slots of its machine.

    Raises:
        AssertionError: Something does not hold.
    """
    waiting = [request.request_id for request in simulation.waiting]
    prefilling = [request for batch in simulation.prefills for request in batch.requests]
    live = [r.request_id for r in prefilling if r.request_id not in simulation.outcomes]
    places = [*waiting, *live, *simulation.running_ids, *simulation.outcomes]
    assert len(set(places)) == len(places), "in two places"
    assert set(places) <= set(ids)
    assert len(places) + simulation.num_coming == len(ids), "lost"
    assert simulation.kv.num_used <= num_kv_tokens
    holders = {r.request_id for r in prefilling} | set(simulation.running_ids)
    assert all(simulation.kv.held_by(request_id) > 0 for request_id in holders)
    assert simulation.kv.num_used == sum(map(simulation.kv.held_by, holders)), "memory leaked"
    assert all(batch.state is BatchState.SUSPENDED for batch in simulation.prefills)
    assert all(batch.num_preemptions <= scheduler.max_preemptions for batch in simulation.prefills)
    everybody = [*simulation.waiting, *prefilling]
    assert all(request.num_restarts <= scheduler.max_restarts for request in everybody)
    statistics = simulation.statistics.statistics()
    assert statistics.num_rounds <= sum(statistics.num_events.values())


class FakeEngineState:
    """``executor.SwitchState`` of one forward pass, over a dictionary of pretended globals.

    Args:
        engine_globals: Shared by all forward passes and the scheduler; contents are swapped.
        log: Every switch is appended to it as ``("enter" | "leave", name)``.
        name: Of this forward pass, for the log.
    """

    def __init__(
        self, engine_globals: dict[str, Any], log: list[tuple[str, str]], name: str = "cursor"
    ) -> None:
        self._globals = engine_globals
        self._log = log
        self._name = name
        self._other_side: dict[str, Any] = {}

    def enter(self) -> None:
        """Put the forward pass's globals in place of the scheduler's."""
        self._log.append(("enter", self._name))
        self._swap()

    def leave(self) -> None:
        """Put the scheduler's globals back."""
        self._log.append(("leave", self._name))
        self._swap()

    def _swap(self) -> None:
        this_side = dict(self._globals)
        self._globals.clear()
        self._globals.update(self._other_side)
        self._other_side = this_side
