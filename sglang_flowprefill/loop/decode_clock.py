"""When running requests got their last token, and so when the next decode step is due."""

from collections.abc import Sequence

from sglang_flowprefill.core import DecodePacing, DecodeView, RunningRequest
from sglang_flowprefill.loop.engine import DecodingRequest

_STEP_WEIGHT = 0.2  # of the newest step in the expected duration of the next


class DecodeClock:
    """Describes the next decode step to the policy.

    Args:
        pacing: The rules.
        default_tpot_s: Allowed seconds between tokens of a request that names no objective.
        step_s: Expected seconds of a step before any has run.

    Attributes:
        default_tpot_s: As given.
    """

    def __init__(self, pacing: DecodePacing, default_tpot_s: float, step_s: float = 0.0) -> None:
        self.default_tpot_s = default_tpot_s
        self._pacing = pacing
        self._last_step_end_s = 0.0
        self._step_s = step_s

    def on_step(self, start_s: float, end_s: float) -> None:
        """A step ran; every running request got a token."""
        weight = _STEP_WEIGHT if self._step_s else 1.0
        self._step_s += weight * (end_s - start_s - self._step_s)
        self._last_step_end_s = end_s

    def view(self, decoding: Sequence[DecodingRequest]) -> DecodeView:
        """Describe the next step of these running requests; there is at least one."""
        return self._pacing.view(
            [
                RunningRequest.of(
                    request.slo, max(request.joined_s, self._last_step_end_s), self.default_tpot_s
                )
                for request in decoding
            ],
            self._last_step_end_s,
            self._step_s,
        )
