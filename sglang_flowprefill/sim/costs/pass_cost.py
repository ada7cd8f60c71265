"""The protocol of cost models, and corrections that apply to any of them."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class PassSeconds(NamedTuple):
    """Seconds of one forward pass.

    Attributes:
        total_s: All of it.
        attention_s: Attention's part.
    """

    total_s: float
    attention_s: float


class PassCost(Protocol):
    """What forward passes take.

    Attributes:
        source: Where the numbers come from, for reports.
    """

    @property
    def source(self) -> str: ...  # noqa: D102 (documented above)

    def prefill(self, num_tokens: int, num_pairs: float, num_requests: int) -> PassSeconds:
        """Return the time of a prefill.

        Args:
            num_tokens: Tokens to compute, of all prompts together.
            num_pairs: Query-key pairs.
            num_requests: Prompts.
        """
        ...

    def decode_s(self, num_requests: int, num_context_tokens: int) -> float:
        """Return the seconds of a decode step; linear in the context for a given batch."""
        ...


@dataclass(frozen=True, slots=True)
class CorrectedCost:
    """Another cost times a factor, plus what each forward pass takes on top.

    Attributes:
        cost: The other.
        factor: On everything.
        offset_s: Seconds on top of each prefill pass: launches, engine, synchronisation.
        step_offset_s: The same of a decode step.
        because: Why, for reports.
    """

    cost: PassCost
    factor: float = 1.0
    offset_s: float = 0.0
    step_offset_s: float = 0.0
    because: str = ""

    @property
    def source(self) -> str:
        """The other's, with the correction."""
        return self.cost.source + (f"; {self.because}" if self.because else "")

    def prefill(self, num_tokens: int, num_pairs: float, num_requests: int) -> PassSeconds:
        """Return the corrected time."""
        total_s, attention_s = self.cost.prefill(num_tokens, num_pairs, num_requests)
        return PassSeconds(self.factor * total_s + self.offset_s, self.factor * attention_s)

    def decode_s(self, num_requests: int, num_context_tokens: int) -> float:
        """Return the corrected time."""
        step_s = self.cost.decode_s(num_requests, num_context_tokens)
        return self.factor * step_s + self.step_offset_s
