"""When a decode step runs beside prefills: late enough for them, early enough for its tokens.

One step gives every running request its next token, so the step is due when the first of them
would otherwise be late: last token + TPOT objective, less what the step takes and less what a
running prefill takes to reach its next boundary. Three rules keep the two sides from harm:

* Prefills keep a share of the machine even where TPOT objectives cannot be met; a bigger one where
  it is a caller's claim that is tighter than the server's own objective.
* A due step waits if it would turn a first token that can still be in time into a late one...
* ...but not beyond a multiple of the TPOT objective, and not at all for a running request whose
  class says that its decoding goes first.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sglang_flowprefill.core.request import Slo

MAX_CLAIMED_SHARE = 0.5
"""Share of the machine that decode steps may take for a claim beyond the server's objective."""


@dataclass(frozen=True, slots=True)
class DecodeView:
    """Requests past their prefill that want their next token.

    Attributes:
        due_s: When the next decode step should run at the latest.
        step_s: How long it will take. With 0 it never waits for a first token.
        limit_s: From here on it waits for nobody.
    """

    due_s: float
    step_s: float = 0.0
    limit_s: float = math.inf


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """One request past its prefill.

    Attributes:
        last_token_s: When it got its last token.
        tpot_slo_s: Allowed seconds from one token to the next.
        decode_first: Its steps run when they are due, whomever that makes late.
        default_tpot_s: The server's own objective.
    """

    last_token_s: float
    tpot_slo_s: float
    decode_first: bool = False
    default_tpot_s: float = math.inf

    @classmethod
    def of(cls, slo: Slo, last_token_s: float, default_tpot_s: float) -> "RunningRequest":
        """Return it as its objective says."""
        tpot_s = default_tpot_s if slo.tpot_s is None else slo.tpot_s
        return cls(last_token_s, tpot_s, slo.decode_first, default_tpot_s)

    def allowed_s(self, step_s: float) -> float:
        """Return the seconds to its next token that steps of this length are run for."""
        return max(self.tpot_slo_s, min(self.default_tpot_s, step_s / MAX_CLAIMED_SHARE))


@dataclass(frozen=True, slots=True)
class DecodePacing:
    """Parameters of the rules.

    Attributes:
        blocking_s: Seconds that a running prefill takes to reach its next boundary.
        min_prefill_share: Share of the machine that prefills keep while there are any.
        max_delay_factor: A step waits for first tokens up to this multiple of the TPOT
            objective; with 1 it does not wait.
    """

    blocking_s: float = 0.0
    min_prefill_share: float = 0.2
    max_delay_factor: float = 1.0

    def view(
        self, running: Iterable[RunningRequest], last_step_end_s: float, step_s: float
    ) -> DecodeView:
        """Describe the next step.

        Args:
            running: The running requests; at least one.
            last_step_end_s: When the last step ended.
            step_s: Expected seconds of the next one.
        """
        lead_s = step_s + self.blocking_s
        due_s = limit_s = math.inf
        for request in running:
            factor = 1.0 if request.decode_first else max(self.max_delay_factor, 1.0)
            allowed_s = request.allowed_s(step_s)
            due_s = min(due_s, request.last_token_s + allowed_s - lead_s)
            limit_s = min(limit_s, request.last_token_s + factor * allowed_s - lead_s)
        share = self.min_prefill_share
        earliest_s = last_step_end_s + step_s * share / (1.0 - share)
        due_s = max(due_s, earliest_s)
        return DecodeView(due_s, step_s, max(limit_s, due_s))
