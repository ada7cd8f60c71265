"""SLO-aware batching: who may ride along with the head of the queue.

Short prompts leave the hardware idle; prefilling several in one pass costs little more than
one. But each passenger delays the head's first token, so the head must keep a reserve.
Source: FlowPrefill, SLO-aware batching (token budget, 0.1 x SLO reserve, head alone when it is
long or late, skip what does not fit, stop at the first that would cost the reserve).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop

from sglang_flowprefill.core.policy import PolicyKey
from sglang_flowprefill.core.predictor import PrefillCost
from sglang_flowprefill.core.request import PrefillRequest


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of a batch.

    Attributes:
        max_tokens: Uncached tokens over all members.
        reserve_fraction: Share of the head's SLO that must remain as slack.
    """

    max_tokens: int
    reserve_fraction: float = 0.1


class Passengers:
    """Requests that might ride along, handed out in the policy's order, one at a time.

    A batch takes a few out of a queue of thousands, so the queue is not sorted: a heap yields
    the next one, and those that are too long for the room left are thrown out together once
    they are many. Taking a whole batch costs O(n + k log n) for k members.

    Args:
        requests: Who might.
        keys: Their sort keys, smallest first; equal ones in the order given.
        max_tokens: Longer ones are left out from the start.
    """

    def __init__(
        self, requests: Sequence[PrefillRequest], keys: Sequence[PolicyKey], max_tokens: int
    ) -> None:
        self._requests = requests
        self._heap = [
            (keys[index], index)
            for index, request in enumerate(requests)
            if request.num_uncached_tokens <= max_tokens
        ]
        heapify(self._heap)

    @classmethod
    def in_order(cls, requests: Iterable[PrefillRequest], max_tokens: int) -> "Passengers":
        """Return those of requests that are in order already."""
        requests = list(requests)
        return cls(requests, [(float(index),) for index in range(len(requests))], max_tokens)

    def pop_fitting(self, max_tokens: int) -> PrefillRequest | None:
        """Take the first of at most so many tokens; forget the longer ones in front of it.

        ``max_tokens`` never grows from call to call, so none of those would fit later.
        """
        num_skipped = 0
        while self._heap:
            _, index = heappop(self._heap)
            if self._requests[index].num_uncached_tokens <= max_tokens:
                return self._requests[index]
            num_skipped += 1
            if 64 * num_skipped > len(self._heap):
                self._forget_longer_than(max_tokens)
                num_skipped = 0
        return None

    def _forget_longer_than(self, max_tokens: int) -> None:
        requests = self._requests
        self._heap = [e for e in self._heap if requests[e[1]].num_uncached_tokens <= max_tokens]
        heapify(self._heap)


def can_take_passengers(
    head: PrefillRequest, now_s: float, cost: PrefillCost, limits: BatchLimits
) -> bool:
    """Tell whether a head has tokens and time to spare for anybody at all."""
    if head.num_uncached_tokens >= limits.max_tokens:
        return False
    return now_s + cost.predict_s((head,)) <= _latest_end_s(head, limits)


def select_batch(
    head: PrefillRequest,
    others: Passengers,
    now_s: float,
    cost: PrefillCost,
    limits: BatchLimits,
) -> tuple[PrefillRequest, ...]:
    """Choose the requests that are prefilled together with the head.

    Args:
        head: The request that the policy chose.
        others: The other waiting requests; those that are looked at are used up.
        now_s: Current time.
        cost: Predictor of the forward pass.
        limits: Bounds.

    Returns:
        The head, followed by its passengers.
    """
    if not can_take_passengers(head, now_s, cost, limits):
        return (head,)
    latest_end_s = _latest_end_s(head, limits)
    members = [head]
    num_tokens_left = limits.max_tokens - head.num_uncached_tokens
    work_s = cost.work_s(head)
    while (request := others.pop_fitting(num_tokens_left)) is not None:
        work_s += cost.work_s(request)
        if now_s + cost.total_s(work_s) > latest_end_s:
            break
        members.append(request)
        num_tokens_left -= request.num_uncached_tokens
    return tuple(members)


def _latest_end_s(head: PrefillRequest, limits: BatchLimits) -> float:
    return head.deadline_s - limits.reserve_fraction * head.slo.ttft_s
