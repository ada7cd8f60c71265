"""What goes into a simulation and what comes out of it."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from sglang_flowprefill.core import LoopStatistics, PrefillRequest
from sglang_flowprefill.sim.kv_pool import Blocks


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as it will really behave.

    Attributes:
        request: What the policy knows of it.
        num_output_tokens: Tokens it wants, the first included.
        slowdown: Actual over predicted prefill time; the worst member's holds for a batch.
        abort_s: When its client leaves, if that is before its end.
        max_new_tokens: What its client asks for, which is all that a server knows of its output;
            None for what it will generate.
        prefix: Blocks at the head of its prompt that others may share. What of them is cached is
            the simulated machine's to say; the request itself then counts all of its tokens as
            uncached.
    """

    request: PrefillRequest
    num_output_tokens: int = 1
    slowdown: float = 1.0
    abort_s: float = math.inf
    max_new_tokens: int | None = None
    prefix: Blocks = ()

    @property
    def num_asked_tokens(self) -> int:
        """Tokens that a server must expect to generate, never fewer than it will."""
        return max(self.max_new_tokens or 0, self.num_output_tokens)

    @property
    def num_kv_tokens(self) -> int:
        """KV slots that a server reserves for it."""
        request = self.request
        return request.num_uncached_tokens + request.num_cached_tokens + self.num_asked_tokens


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


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """A request that comes to a decode server.

    Attributes:
        request_id: Of the request.
        come_s: When its KV is there.
        num_prompt_tokens: Tokens of its prompt.
        num_tokens: Tokens to generate after the first.
        num_kv_tokens: KV slots that the server reserves for it.
    """

    request_id: str
    come_s: float
    num_prompt_tokens: int
    num_tokens: int
    num_kv_tokens: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of one.

    Attributes:
        work: The request.
        joined_s: When it joined the running ones.
        last_token_s: When it got its last token.
    """

    work: DecodeWork
    joined_s: float
    last_token_s: float


class FirstToken(NamedTuple):
    """A first token.

    Attributes:
        time_s: When it comes.
        request_id: Whose it is.
    """

    time_s: float
    request_id: str
