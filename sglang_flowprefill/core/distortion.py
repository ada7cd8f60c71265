"""A predictor that is wrong on purpose, to see how a schedule bears it.

Real predictors are wrong in two ways: all predictions off by the same factor, and each by its own.
Debugging and tests only; with the defaults nothing changes.
"""

import math
import random
from collections.abc import Iterable
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

    def works_s(self, requests: Iterable[PrefillRequest]) -> list[float]:
        """Add an error that each request keeps for life."""
        requests = tuple(requests)
        works_s = PrefillCost.works_s(self, requests)
        return [work_s * self._error_of(r) for r, work_s in zip(requests, works_s, strict=True)]

    def _error_of(self, request: PrefillRequest) -> float:
        draw = random.Random(request.request_id).gauss(0.0, self.noise)  # noqa: S311 (no secret)
        return math.exp(draw)
