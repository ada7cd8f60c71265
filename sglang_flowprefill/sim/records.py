"""What goes into a simulation and what comes out of it."""

import math
from dataclasses import dataclass

from sglang_flowprefill.core import LoopStatistics, PrefillRequest


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as it will really behave.

    Attributes:
        request: What the policy knows of it.
        num_output_tokens: Tokens it wants, the first included.
        slowdown: Actual over predicted prefill time; the worst member's holds for a batch.
        abort_s: When its client leaves, if that is before its end.
    """

    request: PrefillRequest
    num_output_tokens: int = 1
    slowdown: float = 1.0
    abort_s: float = math.inf

    @property
    def num_kv_tokens(self) -> int:
        """KV slots that it holds in the end."""
        request = self.request
        return request.num_uncached_tokens + request.num_cached_tokens + self.num_output_tokens


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        request: The request.
        first_token_s: Time of its first token.
        last_token_s: Time of its last token.
        num_preemptions: How often other work was put in front of its unfinished prefill, since
            its last start.
        num_restarts: How often its prefill was dropped and started over.
        max_gap_s: Longest time from one token to the next.
        is_rejected: Refused at its arrival; its tokens never come, at time infinity.
        is_aborted: Its client left; what had not come by then is at time infinity.
    """

    request: PrefillRequest
    first_token_s: float
    last_token_s: float
    num_preemptions: int
    num_restarts: int = 0
    max_gap_s: float = 0.0
    is_rejected: bool = False
    is_aborted: bool = False

    @property
    def ttft_s(self) -> float:
        """Seconds from arrival to first token."""
        return self.first_token_s - self.request.arrival_s


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What happened.

    Attributes:
        outcomes: One per arrival, in the order given.
        blocking_s: For each yield, seconds from the event that asked for it to the boundary.
        decode_ends_s: When each decode step ended.
        max_kv_tokens: Most KV slots that were in use at once.
        statistics: As a server would report them.
    """

    outcomes: tuple[Outcome, ...]
    blocking_s: tuple[float, ...]
    decode_ends_s: tuple[float, ...]
    max_kv_tokens: int
    statistics: LoopStatistics
