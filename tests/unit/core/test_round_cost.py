"""How much is computed in a round. Counted, not timed: ``bench/decision_cost.py`` times."""

import math
from dataclasses import dataclass, field

import pytest

from sglang_flowprefill.core import (
    PrefillCost,
    PrefillDecider,
    RoundView,
    SEdf,
    StartBatch,
)
from sglang_flowprefill.core.batching import BatchLimits, Passengers
from sglang_flowprefill.testing import make_batch, make_request


@dataclass(frozen=True)
class CountingPolicy(SEdf):
    """S-EDF that counts how often it is asked."""

    calls: list = field(default_factory=list)

    def key(self, candidate, now_s):
        """Order as ever."""
        self.calls.append(candidate)
        return super().key(candidate, now_s)


@dataclass(frozen=True)
class CountingCost(PrefillCost):
    """A predictor that counts how often it is asked for one request."""

    calls: list = field(default_factory=list)

    def works_s(self, requests):
        """Predict as ever."""
        requests = tuple(requests)
        self.calls.extend(request.request_id for request in requests)
        return super().works_s(requests)


def queue(num_requests, num_tokens=lambda index: 1 + index * 7919 % 3000):
    """Return a queue in which no order is that of another."""
    return [
        make_request(
            str(index), ttft_slo_s=1e3 + index * 613 % 997, num_uncached_tokens=num_tokens(index)
        )
        for index in range(num_requests)
    ]


def counting_scheduler(max_tokens=2048):
    """Return a scheduler whose policy and predictor count."""
    return PrefillDecider(CountingPolicy(), CountingCost(0.0, 1e-6, 0.0), BatchLimits(max_tokens))


@pytest.mark.parametrize("num_waiting", [10, 100, 1000])
def test_a_round_asks_the_policy_once_per_waiting_request(num_waiting):
    """And a few times more for each started batch, however long the queue."""
    scheduler = counting_scheduler()
    batches = [make_batch(make_request(f"held {i}"), batch_id=i) for i in range(4)]
    view = RoundView(waiting=queue(num_waiting), batches=batches, current=batches[0])
    scheduler.decide(view, 0.0)
    assert num_waiting <= len(scheduler.policy.calls) <= num_waiting + 5 * len(batches)


def test_a_request_is_predicted_once_in_its_life():
    """Later rounds predict newcomers and members of the batch that starts, nothing else."""
    scheduler = counting_scheduler()
    waiting = queue(500)
    scheduler.decide(RoundView(waiting=waiting), 0.0)
    first_round = len(scheduler.cost.calls)
    assert first_round >= 500
    scheduler.cost.calls.clear()
    newcomer = make_request("newcomer", ttft_slo_s=2e3, num_uncached_tokens=5000)
    current = make_batch(make_request("current", ttft_slo_s=1.0), run_s=0.01)
    view = RoundView(waiting=[*waiting, newcomer], batches=[current], current=current)
    for now_s in (0.1, 0.2, 0.3):
        scheduler.decide(view, now_s)
    assert scheduler.cost.calls == ["newcomer"]


def test_starting_a_batch_predicts_its_members_only():
    """Those that stay in the queue are not looked at, those that do not fit are not predicted."""
    scheduler = counting_scheduler()
    view = RoundView(waiting=queue(2000))
    scheduler.decide(view, 0.0)
    scheduler.cost.calls.clear()
    decision = scheduler.decide(view, 0.0)
    assert isinstance(decision, StartBatch)
    assert len(decision.requests) > 2
    assert len(scheduler.cost.calls) <= len(decision.requests) + 2


@pytest.mark.parametrize("num_waiting", [1000, 4000])
def test_filling_a_batch_does_not_sort_the_queue(num_waiting):
    """Comparisons: linear to build the heap, and a logarithm for each that is taken or skipped."""
    comparisons = []

    class Key(tuple):
        __slots__ = ()

        def __lt__(self, other):
            comparisons.append(None)
            return tuple.__lt__(self, other)

    requests = queue(num_waiting)
    keys = [Key((request.slo.ttft_s, index)) for index, request in enumerate(requests)]
    passengers = Passengers(requests, keys, max_tokens=2048)
    num_left, num_taken = 2048, 0
    while (request := passengers.pop_fitting(num_left)) is not None:
        num_left -= request.num_uncached_tokens
        num_taken += 1
    assert num_taken >= 2
    assert len(comparisons) <= 3 * num_waiting + num_taken * 4 * math.log2(num_waiting)


def test_what_is_remembered_does_not_grow_with_all_that_ever_waited():
    """Requests that left are forgotten, and their memory is free."""
    scheduler = counting_scheduler()
    for start in range(0, 3000, 30):
        waiting = queue(30 + start)[start:]
        scheduler.decide(RoundView(waiting=waiting), 0.0)
    assert len(scheduler._memo._requests) <= 200
    assert set(map(id, scheduler._memo._requests)) == set(scheduler._memo._candidates)


def test_a_round_with_a_memory_decides_as_one_without():
    """The memo leaves no trace in any decision."""
    warm = counting_scheduler()
    waiting = queue(200)
    for num_waiting in (50, 200, 10, 120):
        view = RoundView(waiting=waiting[:num_waiting])
        assert warm.decide(view, 0.5) == counting_scheduler().decide(view, 0.5)
