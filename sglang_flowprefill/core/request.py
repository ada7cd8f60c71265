"""What the policy knows of one request: when it came, when it is due, how much work it is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slo:
    """A time-to-first-token objective.

    Attributes:
        ttft_s: Allowed seconds from arrival to first token; positive and finite.
        class_name: Name under which attainment is reported.
    """

    ttft_s: float
    class_name: str = "default"


@dataclass(frozen=True, slots=True)
class PrefillRequest:
    """One prompt that waits for, or is in, its prefill.

    Attributes:
        request_id: Unique among live requests.
        arrival_s: When the server received it, on the clock of ``now_s``; queueing before the
            scheduler saw it is therefore part of its TTFT.
        slo: Its objective.
        num_uncached_tokens: Tokens to compute.
        num_cached_tokens: Tokens whose KV is in the prefix cache already.
        num_restarts: How often its prefill was dropped for somebody else's memory.
    """

    request_id: str
    arrival_s: float
    slo: Slo
    num_uncached_tokens: int
    num_cached_tokens: int = 0
    num_restarts: int = 0

    @property
    def deadline_s(self) -> float:
        """Latest time of a first token that meets the objective."""
        return self.arrival_s + self.slo.ttft_s
