"""Many instances behind one router, on one clock.

A heap holds when something can next end at each instance. Before a request is routed by load, the
instances where something may have ended since are served up to that moment, and so is the one that
is chosen, and no others. So a run costs what happens in it, however many instances stand by.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.core.stats import is_attained
from sglang_flowprefill.sim.instances.instance import Instance
from sglang_flowprefill.sim.records import Arrival, FirstToken, Outcome
from sglang_flowprefill.sim.routers import Router, Sent

_ARRIVALS_PER_LOOK = 32
"""Between two looks at how many requests have missed their objectives so far."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Instances that end for good; what was there starts over elsewhere.

    Attributes:
        time_s: When.
        num_instances: How many, the last ones.
    """

    time_s: float
    num_instances: int


@dataclass(slots=True)
class ClusterResult:
    """What happened in a cluster.

    Attributes:
        outcomes: By request id; of fewer requests than came if the run was given up.
        instance_of: Which instance served each request in the end.
        blocking_s: Of all instances.
        busy_share: Mean share of the time in which a device ran something.
        max_kv_tokens: Most KV slots in use at once at any instance.
        duration_s: From the first arrival to the last token.
        was_given_up: More first tokens were late than were allowed to be.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    instance_of: dict[str, int] = field(default_factory=dict)
    blocking_s: list[float] = field(default_factory=list)
    busy_share: float = 0.0
    max_kv_tokens: int = 0
    duration_s: float = 0.0
    was_given_up: bool = False


class Cluster:
    """Instances behind a router.

    Args:
        instances: At least one.
        router: Who chooses.
        cost: Predicted prefill time, for routers that look at it.
        failure: Instances that end on the way.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        router: Router,
        cost: PrefillCost,
        failure: Failure | None = None,
    ) -> None:
        self._instances = instances
        self._router = router
        self._cost = cost
        self._failure = failure
        self._alive = list(range(len(instances)))
        self._sent = [Sent() for _ in instances]
        self._ends: list[tuple[float, int]] = []
        self._next_end_s = [math.inf] * len(instances)
        self._coming_tokens: list[deque[FirstToken]] = [deque() for _ in instances]
        self._there: list[dict[str, Arrival]] = [{} for _ in instances]
        self._result = ClusterResult()
        self._num_missed = 0

    def run(self, arrivals: Sequence[Arrival], allowed_misses: float = math.inf) -> ClusterResult:
        """Serve all requests.

        Args:
            arrivals: In order of arrival.
            allowed_misses: Give up once more first tokens than this were late.
        """
        failure, result = self._failure, self._result
        for number, arrival in enumerate(arrivals):
            now_s = arrival.request.arrival_s
            if failure is not None and now_s >= failure.time_s:
                self._fail(failure)
                failure = None
            self._route(arrival, now_s)
            if number % _ARRIVALS_PER_LOOK == 0 and allowed_misses < math.inf:
                self._advance_all(now_s)
                if self._num_missed > allowed_misses:
                    result.was_given_up = True
                    return result
        self._advance_all(math.inf)
        self._summarise(arrivals)
        result.was_given_up = self._num_missed > allowed_misses
        return result

    def _route(self, arrival: Arrival, now_s: float) -> None:
        if self._router.looks_at_load:
            self._advance_ended(now_s)
        index = self._router.choose(arrival, self._alive, self._sent)
        if self._router.looks_at_load:
            self._advance(index, now_s)
        self._instances[index].add(arrival, now_s)
        sent, request = self._sent[index], arrival.request
        self._there[index][request.request_id] = arrival
        if self._router.looks_at_load:
            sent.num_requests += 1
            sent.predicted_s[request.request_id] = self._cost.predict_s((request,))
            sent.deadline_s[request.request_id] = request.deadline_s
            sent.block_ids.update(block_id for block_id, _ in arrival.prefix)
            self._expect_end(index, now_s)

    def _advance_ended(self, now_s: float) -> None:
        """Serve the instances where something may have ended before now."""
        while self._ends and self._ends[0][0] < now_s:
            end_s, index = heappop(self._ends)
            if end_s == self._next_end_s[index]:  # else it is out of date
                self._advance(index, now_s)

    def _expect_end(self, index: int, time_s: float) -> None:
        self._next_end_s[index] = time_s
        if time_s < math.inf:
            heappush(self._ends, (time_s, index))

    def _advance(self, index: int, until_s: float) -> None:
        """Serve an instance up to a time; what it runs then may end later, which nobody knows."""
        instance = self._instances[index]
        instance.advance(until_s)
        there = self._there[index]
        for outcome in instance.take_outcomes():
            request_id = outcome.request.request_id
            self._result.outcomes[request_id] = outcome
            self._result.instance_of[request_id] = index
            self._num_missed += not _has_met_ttft(outcome)
            if outcome.last_token_s <= until_s:
                del there[request_id]
        first_tokens = instance.take_first_tokens()
        if self._router.looks_at_load:
            self._note_first_tokens(index, first_tokens, until_s)

    def _note_first_tokens(
        self, index: int, first_tokens: Sequence[FirstToken], until_s: float
    ) -> None:
        """Let the router know of the first tokens that have come by now."""
        sent, coming = self._sent[index], self._coming_tokens[index]
        coming.extend(first_tokens)
        while coming and coming[0].time_s <= until_s:
            request_id = coming.popleft().request_id
            if sent.predicted_s.pop(request_id, None) is not None:
                sent.num_requests -= 1
                del sent.deadline_s[request_id]
        next_s = coming[0].time_s if coming else self._instances[index].next_end_s
        self._expect_end(index, max(next_s, until_s))

    def _advance_all(self, until_s: float) -> None:
        for index in self._alive:
            self._advance(index, until_s)

    def _fail(self, failure: Failure) -> None:
        """End the last instances, and route again what has not ended there."""
        for index in self._alive[-failure.num_instances :]:
            self._advance(index, failure.time_s)
        dead = self._alive[-failure.num_instances :]
        for request_id in [i for index in dead for i in self._there[index]]:
            ended = self._result.outcomes.pop(request_id, None)  # it would have, later
            self._num_missed -= ended is not None and not _has_met_ttft(ended)
        del self._alive[-failure.num_instances :]
        for index in dead:
            self._next_end_s[index] = math.inf
        lost = [arrival for index in dead for arrival in self._there[index].values()]
        for arrival in sorted(lost, key=lambda a: (a.request.arrival_s, a.request.request_id)):
            self._route(arrival, failure.time_s)

    def _summarise(self, arrivals: Sequence[Arrival]) -> None:
        result = self._result
        first_s = arrivals[0].request.arrival_s
        last_s = max(outcome.last_token_s for outcome in result.outcomes.values())
        result.duration_s = last_s - first_s
        result.blocking_s = [s for instance in self._instances for s in instance.blocking_s]
        busy_s = sum(instance.busy_s for instance in self._instances)
        result.busy_share = busy_s / (result.duration_s * len(self._instances) or 1.0)
        result.max_kv_tokens = max(instance.max_kv_tokens for instance in self._instances)


def _has_met_ttft(outcome: Outcome) -> bool:
    return is_attained(outcome.ttft_s, outcome.request.slo.ttft_s)
