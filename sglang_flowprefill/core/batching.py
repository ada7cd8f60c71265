"""SLO-aware batching: who may ride along with the head of the queue.

Short prompts leave the hardware idle; prefilling several in one pass costs little more than
one. But each passenger delays the head's first token, so the head must keep a reserve.
Source: FlowPrefill, SLO-aware batching (token budget, 0.1 x SLO reserve, head alone when it is
long or late, skip what does not fit, stop at the first that would cost the reserve).
"""

from collections.abc import Iterable
from dataclasses import dataclass

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


def select_batch(
    head: PrefillRequest,
    others: Iterable[PrefillRequest],
    now_s: float,
    cost: PrefillCost,
    limits: BatchLimits,
) -> tuple[PrefillRequest, ...]:
    """Choose the requests that are prefilled together with the head.

    Args:
        head: The request that the policy chose.
        others: The other waiting requests in the policy's order.
        now_s: Current time.
        cost: Predictor of the forward pass.
        limits: Bounds.

    Returns:
        The head, followed by its passengers.
    """
    latest_end_s = head.deadline_s - limits.reserve_fraction * head.slo.ttft_s
    members = [head]
    num_tokens = head.num_uncached_tokens
    if num_tokens >= limits.max_tokens or now_s + cost.predict_s(members) > latest_end_s:
        return (head,)
    for request in others:
        if num_tokens + request.num_uncached_tokens > limits.max_tokens:
            continue
        if now_s + cost.predict_s([*members, request]) > latest_end_s:
            break
        members.append(request)
        num_tokens += request.num_uncached_tokens
    return tuple(members)
