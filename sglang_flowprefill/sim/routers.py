"""Routers as they are deployed: what stands before the instances and knows what it has sent.

A router knows of an instance what it sent there and which of that has answered, and nothing of
what is inside.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.sim.records import Arrival


@dataclass(slots=True)
class Sent:
    """What a router has sent to one instance and has had no first token of.

    Attributes:
        num_requests: Requests.
        predicted_s: Predicted prefill time of each, by request id.
        deadline_s: Deadline of each, by request id.
        block_ids: Prefix blocks that were ever sent there.
    """

    num_requests: int = 0
    predicted_s: dict[str, float] = field(default_factory=dict)
    deadline_s: dict[str, float] = field(default_factory=dict)
    block_ids: set[int] = field(default_factory=set)


class Router(Protocol):
    """Chooses an instance for each request.

    Attributes:
        looks_at_load: Whether it needs to know which requests have answered.
    """

    @property
    def looks_at_load(self) -> bool: ...  # noqa: D102 (documented above)

    def choose(self, arrival: Arrival, alive: Sequence[int], sent: Sequence[Sent]) -> int:
        """Return the instance, one of ``alive``."""
        ...


class RoundRobin:
    """Each in turn."""

    looks_at_load = False

    def __init__(self, cost: PrefillCost) -> None:  # noqa: ARG002 (all routers are made alike)
        self._next = 0

    def choose(self, arrival: Arrival, alive: Sequence[int], sent: Sequence[Sent]) -> int:  # noqa: ARG002
        """Return the next one."""
        self._next += 1
        return alive[(self._next - 1) % len(alive)]


class LeastLoad:
    """The fewest requests without a first token."""

    looks_at_load = True

    def __init__(self, cost: PrefillCost) -> None:
        pass

    def choose(self, arrival: Arrival, alive: Sequence[int], sent: Sequence[Sent]) -> int:  # noqa: ARG002
        """Return the first of the least loaded."""
        return min(alive, key=lambda index: sent[index].num_requests)


class PrefixAffinity:
    """Where most of the prompt's prefix has been sent before, unless that one is overloaded.

    Attributes:
        max_lead: Requests by which it may be ahead of the least loaded.
        min_share: Share of the prefix below which load alone decides.
    """

    looks_at_load = True
    max_lead = 8
    min_share = 0.5

    def __init__(self, cost: PrefillCost) -> None:
        pass

    def choose(self, arrival: Arrival, alive: Sequence[int], sent: Sequence[Sent]) -> int:
        """Return the one with the longest known head, or the least loaded."""
        least = min(alive, key=lambda index: sent[index].num_requests)
        best, best_share = least, 0.0
        if arrival.prefix:
            total = sum(num for _, num in arrival.prefix)
            for index in alive:
                share = _known_head(arrival, sent[index]) / total
                if share > best_share:
                    best, best_share = index, share
        is_ahead = sent[best].num_requests > sent[least].num_requests + self.max_lead
        return least if is_ahead or best_share < self.min_share else best


class PredictedSlack:
    """The most slack: least predicted work with deadlines no later than the request's own."""

    looks_at_load = True

    def __init__(self, cost: PrefillCost) -> None:
        self._cost = cost

    def choose(self, arrival: Arrival, alive: Sequence[int], sent: Sequence[Sent]) -> int:
        """Return the one that is expected to answer first."""
        deadline_s = arrival.request.deadline_s

        def ahead_s(index: int) -> tuple[float, float]:
            there = sent[index]
            ahead = sum(
                seconds
                for request_id, seconds in there.predicted_s.items()
                if there.deadline_s[request_id] <= deadline_s
            )
            return ahead, sum(there.predicted_s.values())

        return min(alive, key=ahead_s)


def _known_head(arrival: Arrival, sent: Sent) -> int:
    num_tokens = 0
    for block_id, num in arrival.prefix:
        if block_id not in sent.block_ids:
            break
        num_tokens += num
    return num_tokens


ROUTERS: Mapping[str, Callable[[PrefillCost], Router]] = MappingProxyType(
    {
        "round-robin": RoundRobin,
        "least-load": LeastLoad,
        "prefix-affinity": PrefixAffinity,
        "predicted-slack": PredictedSlack,
    }
)
"""Routers by the name that a user writes."""
