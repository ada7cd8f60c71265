"""A decider whose predictions follow what prefills really take."""

from dataclasses import asdict, replace
from typing import Any

from sglang_flowprefill.core.calibration import Calibration, Observation, PredictionError
from sglang_flowprefill.core.decider import PrefillDecider
from sglang_flowprefill.core.decision import Decision
from sglang_flowprefill.core.distortion import Distortion
from sglang_flowprefill.core.predictor import PrefillCost
from sglang_flowprefill.core.view import RoundView


class CalibratedDecider:
    """Holds the present decider, and replaces it when calibration has moved.

    Args:
        decider: What decides; its cost is replaced at once.
        calibration: The predictor; learns from every prefill that ends.
        distortion: Makes predictions wrong on purpose.

    Attributes:
        present: What decides now.
    """

    def __init__(
        self, decider: PrefillDecider, calibration: Calibration, distortion: Distortion
    ) -> None:
        self._calibration = calibration
        self._distortion = distortion
        self.present = decider
        self._use(calibration.cost)

    def decide(self, view: RoundView, now_s: float) -> Decision:
        """Decide what runs next."""
        return self.present.decide(view, now_s)

    def learn(self, observation: Observation) -> PredictionError:
        """Take in a prefill that ended; take a new cost into use once it has moved.

        Returns:
            How far recent predictions were off.
        """
        self._calibration = self._calibration.observed(observation)
        if self._calibration.has_moved_from(self._cost):
            self._use(self._calibration.cautious_cost)
        return self._calibration.error

    def describe(self) -> dict[str, Any]:
        """Return coefficients, errors and recent predictions as plain values."""
        error, cost = self._calibration.error, self._calibration.cost
        return {
            "num_observed": self._calibration.num_observed,
            "num_observations": error.num_observations,
            "median_absolute_error": round(error.median_absolute, 4),
            "bias": round(error.bias, 4),
            "margin": round(self._calibration.margin, 4),
            "base_s": cost.base_s,
            "per_request_s": cost.per_request_s,
            "per_token_s": cost.per_token_s,
            "per_attention_pair_s": cost.per_attention_pair_s,
            "recent": [
                {**asdict(judged.observation), "predicted_s": judged.predicted_s}
                for judged in self._calibration.recent
            ],
        }

    def _use(self, cost: PrefillCost) -> None:
        self._cost = cost
        self.present = replace(self.present, cost=self._distortion.of(cost))
