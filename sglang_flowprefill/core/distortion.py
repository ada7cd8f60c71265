"""A predictor that is wrong on purpose, to see how a schedule bears it.

Real predictors are wrong in two ways: all predictions off by the same factor, and each by its own.
Debugging and tests only; with the defaults nothing changes.
"""

import math
import random
from dataclasses import dataclass

from sglang_flowprefill.core.predictor import PrefillCost
from sglang_flowprefill.core.request import PrefillRequest


@dataclass(frozen=True, slots=True)
class Distortion:
    """How wrong predictions are to be.

    Attributes:
        factor: On all of them.
        noise: Standard deviation of the logarithm of a further factor, one for each request.
    """

    factor: float = 1.0
    noise: float = 0.0

    def of(self, cost: PrefillCost) -> PrefillCost:
        """Return a cost that predicts wrongly what this one predicts."""
        if self == Distortion():
            return cost
        wrong = cost.scaled(self.factor)
        return _DistortedCost(
            wrong.base_s,
            wrong.per_token_s,
            wrong.per_attention_pair_s,
            wrong.floor_s,
            wrong.per_request_s,
            self.noise,
        )


@dataclass(frozen=True, slots=True)
class _DistortedCost(PrefillCost):
    noise: float = 0.0

    def work_s(self, request: PrefillRequest) -> float:
        """Add an error that a request keeps for life."""
        draw = random.Random(request.request_id).gauss(0.0, self.noise)  # noqa: S311 (no secret)
        return PrefillCost.work_s(self, request) * math.exp(draw)
