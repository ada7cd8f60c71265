"""The row of one replayed request: what was asked, when, and what became of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One replayed request. Times are seconds since the start of the replay.

    Attributes:
        index: Position in the workload.
        slo_class: Its class.
        num_input_tokens: Prompt length.
        num_output_tokens: Tokens asked for.
        slo_ttft_s: Its objective.
        scheduled_s: When it was due to be sent.
        sent_s: When it was sent.
        first_token_s: When its first token arrived, None if it never did.
        finished_s: When its stream ended or failed.
        num_generated_tokens: As the server counted them.
        error: Why it failed, None if it was served in full.
        slo_tpot_s: Its objective for the time per output token, None if it has none.
    """

    index: int
    slo_class: str
    num_input_tokens: int
    num_output_tokens: int
    slo_ttft_s: float
    scheduled_s: float
    sent_s: float
    first_token_s: float | None
    finished_s: float | None
    num_generated_tokens: int
    error: str | None
    slo_tpot_s: float | None = None

    @property
    def ttft_s(self) -> float | None:
        """Send to first token; None for a request that failed, even after its first token."""
        if self.error is not None or self.first_token_s is None:
            return None
        return self.first_token_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None for a failed request or a single token."""
        if self.ttft_s is None or self.finished_s is None or self.num_generated_tokens < 2:
            return None
        assert self.first_token_s is not None, "it has a TTFT"
        return (self.finished_s - self.first_token_s) / (self.num_generated_tokens - 1)

    @property
    def ttft_from_schedule_s(self) -> float | None:
        """The same from the scheduled send: charges the client's lateness to the server."""
        return None if self.ttft_s is None else self.ttft_s + self.lateness_s

    @property
    def lateness_s(self) -> float:
        """How far behind its schedule the client was."""
        return self.sent_s - self.scheduled_s
