"""When running requests got their last token, and so when the next decode step is due."""

from collections.abc import Iterable, Sequence
from typing import Any

from sglang_flowprefill.adapter.serving.requests import prefill_request
from sglang_flowprefill.core import DecodePacing, DecodeView, RunningRequest

_ATTRIBUTE = "flowprefill_joined_s"
_STEP_WEIGHT = 0.2  # of the newest step in the expected duration of the next


class DecodeClock:
    """Describes the next decode step to the policy.

    Args:
        pacing: The rules.
        default_tpot_s: Allowed seconds between tokens of a request that names no objective.
    """

    def __init__(self, pacing: DecodePacing, default_tpot_s: float) -> None:
        self._pacing = pacing
        self._default_tpot_s = default_tpot_s
        self._last_step_end_s = 0.0
        self._step_s = 0.0

    @property
    def default_tpot_s(self) -> float:
        """Allowed seconds between tokens of a request that names no objective."""
        return self._default_tpot_s

    def on_joined(self, reqs: Iterable[Any], now_s: float) -> None:
        """These requests got their first token and decode from now on."""
        for req in reqs:
            setattr(req, _ATTRIBUTE, now_s)

    def on_step(self, start_s: float, end_s: float) -> None:
        """A step ran; every running request got a token."""
        weight = _STEP_WEIGHT if self._step_s else 1.0
        self._step_s += weight * (end_s - start_s - self._step_s)
        self._last_step_end_s = end_s

    def view(self, reqs: Sequence[Any]) -> DecodeView:
        """Describe the next step of these running requests; there is at least one."""
        return self._pacing.view(
            [
                RunningRequest.of(
                    prefill_request(req).slo,
                    max(getattr(req, _ATTRIBUTE, 0.0), self._last_step_end_s),
                    self._default_tpot_s,
                )
                for req in reqs
            ],
            self._last_step_end_s,
            self._step_s,
        )
