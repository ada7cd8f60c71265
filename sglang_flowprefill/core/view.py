"""What a scheduling round sees of the world: plain data, made anew for each round."""

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_flowprefill.core.batch import PrefillBatch
from sglang_flowprefill.core.decode import DecodeView
from sglang_flowprefill.core.memory import Release
from sglang_flowprefill.core.request import PrefillRequest


@dataclass(frozen=True, slots=True)
class BlockedRequest:
    """A waiting request that the engine could not give memory.

    Attributes:
        request: One of the waiting requests.
        num_missing_tokens: KV slots that it lacks; 0 if the engine turned it away for another
            reason.
    """

    request: PrefillRequest
    num_missing_tokens: int


@dataclass(frozen=True, slots=True)
class RoundView:
    """Everything that a round may look at.

    Attributes:
        waiting: Requests not yet in a batch.
        batches: Batches that are ready or suspended.
        current: The one of ``batches`` that ran last, if it has not ended.
        decode: The running requests, if any.
        blocked: The waiting request that found no memory. Those that are not before it in the
            policy's order do not start either: they would take the memory that it waits for.
        releases: Memory that running requests are expected to give back.
    """

    waiting: Sequence[PrefillRequest] = ()
    batches: Sequence[PrefillBatch] = ()
    current: PrefillBatch | None = None
    decode: DecodeView | None = None
    blocked: BlockedRequest | None = None
    releases: Sequence[Release] = ()
