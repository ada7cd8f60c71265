"""What the policy knows of one request: when it came, when it is due, how much work it is."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency objectives.

    Attributes:
        ttft_s: Allowed seconds from arrival to first token; positive and finite.
        class_name: Name under which attainment is reported.
        tpot_s: Allowed seconds from each token to the next; None for the server's default.
        decode_first: Its decode steps run when due, even if that makes a first token late.
        predicted_factor: ``ttft_s`` is yet to grow by this many times the predicted seconds of the
            prefill; 0 once it has (``grown``), or where it does not depend on the prompt.
        is_soft: The server's own guess of what would be good, not what somebody asked for: late
            is late, and still to be served soon.
    """

    ttft_s: float
    class_name: str = "default"
    tpot_s: float | None = None
    decode_first: bool = False
    predicted_factor: float = 0.0
    is_soft: bool = False

    def grown(self, predicted_s: float) -> "Slo":
        """Return the objective of a prompt whose prefill alone is predicted to take this long."""
        if not self.predicted_factor:
            return self
        ttft_s = self.ttft_s + self.predicted_factor * predicted_s
        return replace(self, ttft_s=ttft_s, predicted_factor=0.0, is_soft=True)


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
        is_degraded: Admitted only to be served after others.
    """

    request_id: str
    arrival_s: float
    slo: Slo
    num_uncached_tokens: int
    num_cached_tokens: int = 0
    num_restarts: int = 0
    is_degraded: bool = False

    @property
    def deadline_s(self) -> float:
        """Latest time of a first token that meets the objective."""
        return self.arrival_s + self.slo.ttft_s
