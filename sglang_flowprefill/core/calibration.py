"""Keeps the prefill predictor true while the server runs.

The start-up profile knows the shape of the cost, but not a machine that others share, a frequency
that drops, or what several sequences in one batch cost. Every prefill that ends is an observation.
Two estimates come out of them, one fast and one slow:

* **Shape**: the four coefficients of ``PrefillCost``. Weighted least squares on relative errors,
  forgetting slowly, pulled towards the start-up profile where observations say nothing, each
  coefficient within fixed bounds of it. An observation far from the present prediction weighs
  little.
* **Scale**: one factor on all of them, the median of recent actual over predicted times. Half of
  the recent observations may be arbitrarily wrong, and a machine that slows down shows within
  half a window.

A quantile of the recent relative errors becomes the margin that slack is computed with, so that a
request counts as feasible only if it probably is.

Immutable: ``observed`` returns the next state. Nothing here reads a clock or touches the server.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from sglang_flowprefill.core.predictor import PrefillCost, num_attention_pairs
from sglang_flowprefill.core.request import PrefillRequest

_SCALE_WINDOW = 25
_MARGIN_WINDOW = 64
_ERROR_WINDOW = 128
_SETTLING = 0.02  # share of the scale, as a power, that moves into the shape per observation
_LEAST_FOR_QUANTILE = 10  # fewer say nothing about a quantile
_FORGETTING = 0.99
_PULL = 0.05  # of the start-up profile, in observations
_OUTLIER = 0.3  # relative error from which an observation loses weight
_NUM_SWEEPS = 4
_MAX_FACTOR = 64.0  # beyond this a coefficient, or an observation, is absurd
_MAX_MARGIN = 1.0
_QUANTILE = 0.9
_LEAST_S = 1e-9

Terms = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Observation:
    """One prefill that ended.

    Attributes:
        num_requests: Sequences in the batch.
        num_uncached_tokens: Tokens computed, over all of them.
        num_attention_pairs: Query-key pairs, over all of them.
        actual_s: Seconds that it ran, suspensions excluded.
    """

    num_requests: int
    num_uncached_tokens: int
    num_attention_pairs: float
    actual_s: float

    @classmethod
    def of(cls, requests: Sequence[PrefillRequest], actual_s: float) -> "Observation":
        """Return what one forward pass over these requests tells."""
        return cls(
            len(requests),
            sum(r.num_uncached_tokens for r in requests),
            sum(num_attention_pairs(r.num_uncached_tokens, r.num_cached_tokens) for r in requests),
            actual_s,
        )


@dataclass(frozen=True, slots=True)
class JudgedPrediction:
    """A prediction, and what came of it.

    Attributes:
        observation: The prefill.
        predicted_s: What was predicted for it just before it was taken in.
    """

    observation: Observation
    predicted_s: float

    @property
    def ratio(self) -> float:
        """Actual over predicted time."""
        return self.observation.actual_s / self.predicted_s


@dataclass(frozen=True, slots=True)
class PredictionError:
    """How wrong recent predictions were, each made before its observation.

    Attributes:
        num_observations: How many are looked at.
        median_absolute: Median of |actual - predicted| / actual.
        bias: Median of predicted / actual - 1. Positive: predictions are too long.
    """

    num_observations: int
    median_absolute: float
    bias: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The state of the predictor.

    Attributes:
        profile: The start-up profile.
        units: Seconds of one unit of each coefficient; the profile's own where it has one.
        factors: The coefficients of the shape, in units.
        scale: Factor on the whole shape.
        margin: Share that is added to predictions for slack.
        num_observed: Observations taken in.
        num_refused: Observations that cannot be true, and were left out.
        recent: The latest predictions and what came of them, oldest first.
    """

    profile: PrefillCost
    units: Terms
    factors: Terms
    scale: float = 1.0
    margin: float = 0.0
    num_observed: int = 0
    num_refused: int = 0
    _normal: tuple[Terms, Terms, Terms, Terms] = ((0.0,) * 4,) * 4
    _target: Terms = (0.0,) * 4
    recent: tuple[JudgedPrediction, ...] = ()

    @classmethod
    def from_profile(cls, profile: PrefillCost) -> "Calibration":
        """Return the state before the first observation: it predicts what the profile does."""
        units = _units_of(profile)
        return cls(profile, units, _factors_of(profile, units))

    @property
    def cost(self) -> PrefillCost:
        """The expected cost of a prefill."""
        base_s, per_request_s, per_token_s, per_pair_s = (
            self.scale * factor * unit
            for factor, unit in zip(self.factors, self.units, strict=True)
        )
        return PrefillCost(base_s, per_token_s, per_pair_s, self.profile.floor_s, per_request_s)

    @property
    def cautious_cost(self) -> PrefillCost:
        """The cost that nine of ten recent prefills stayed within: the one for slack."""
        return self.cost.scaled(1.0 + self.margin)

    @property
    def error(self) -> PredictionError:
        """How wrong recent predictions were."""
        if not self.recent:
            return PredictionError(0, 0.0, 0.0)
        return PredictionError(
            len(self.recent),
            median(abs(1.0 - 1.0 / judged.ratio) for judged in self.recent),
            median(1.0 / judged.ratio - 1.0 for judged in self.recent),
        )

    def observed(self, observation: Observation) -> "Calibration":
        """Return the state after one more prefill has ended."""
        terms = self._terms_of(observation)
        profile_s = max(_dot(terms, _factors_of(self.profile, self.units)), self.profile.floor_s)
        actual_s = observation.actual_s
        if not _is_credible(terms, profile_s, actual_s):
            return replace(self, num_refused=self.num_refused + 1)
        judged = JudgedPrediction(observation, self._predict_s(terms))
        normal, target = self._with_equation(terms, profile_s, actual_s, judged.ratio)
        settled = replace(
            self,
            num_observed=self.num_observed + 1,
            factors=self._solve(normal, target),
            _normal=normal,
            _target=target,
            recent=(*self.recent, judged)[-_ERROR_WINDOW:],
        )
        return settled._with_scale()._with_margin()

    def has_moved_from(self, cost: PrefillCost, tolerance: float = 0.02) -> bool:
        """Tell whether a cost in use has become wrong by more than this share.

        Putting a new cost to use makes a scheduler predict its whole queue again, so that should
        not happen for every observation. Compared on what was observed lately.
        """
        theirs = _factors_of(cost, self.units)
        for terms, _ in self._latest(_MARGIN_WINDOW):
            now_s = (1.0 + self.margin) * self._predict_s(terms)
            then_s = max(_dot(terms, theirs), cost.floor_s)
            if abs(now_s - then_s) > tolerance * then_s:
                return True
        return False

    def _predict_s(self, terms: Terms) -> float:
        return max(self.scale * _dot(terms, self.factors), self.profile.floor_s, _LEAST_S)

    def _with_scale(self) -> "Calibration":
        """Fit the scale, and let a little of it pass into the shape.

        Both multiply the same thing: without that, one could wander off and the other follow.
        """
        ratios = [
            actual_s / max(_dot(terms, self.factors), _LEAST_S)
            for terms, actual_s in self._latest(_SCALE_WINDOW)
        ]
        ratios += [1.0] * (_LEAST_FOR_QUANTILE - len(ratios))  # the first may be a warm-up
        scale = min(max(median(ratios), 1.0 / _MAX_FACTOR), _MAX_FACTOR)
        moved = scale**_SETTLING
        a, b, c, d = (min(moved * factor, _MAX_FACTOR) for factor in self.factors)
        return replace(
            self,
            scale=scale / moved,
            factors=(a, b, c, d),
            _target=_scaled(self._target, moved),
        )

    def _with_margin(self) -> "Calibration":
        """Take a quantile of how much longer recent prefills took than would be predicted now."""
        latest = self._latest(_MARGIN_WINDOW)
        if len(latest) < _LEAST_FOR_QUANTILE:
            return self
        ratios = sorted(actual_s / self._predict_s(terms) for terms, actual_s in latest)
        quantile = ratios[int(_QUANTILE * len(ratios))]
        return replace(self, margin=min(max(quantile - 1.0, 0.0), _MAX_MARGIN))

    def _latest(self, num_observations: int) -> list[tuple[Terms, float]]:
        return [
            (self._terms_of(judged.observation), judged.observation.actual_s)
            for judged in self.recent[-num_observations:]
        ]

    def _terms_of(self, observation: Observation) -> Terms:
        base, per_request, per_token, per_pair = self.units
        return (
            base,
            per_request * observation.num_requests,
            per_token * observation.num_uncached_tokens,
            per_pair * observation.num_attention_pairs,
        )

    def _with_equation(
        self, terms: Terms, profile_s: float, actual_s: float, ratio: float
    ) -> tuple[tuple[Terms, Terms, Terms, Terms], Terms]:
        """Add one row to the weighted normal equations, relative to the profile's prediction."""
        off = abs(math.log(ratio))
        weight = 1.0 if off <= _OUTLIER else (_OUTLIER / off) ** 2
        # What the scale explains, the shape does not have to.
        unscaled_s = actual_s / self.scale
        weight *= (ratio * profile_s / unscaled_s) ** 2  # errors relative to what was predicted
        row = [term / profile_s for term in terms]
        goal = unscaled_s / profile_s
        normal = [
            tuple(_FORGETTING * self._normal[i][j] + weight * row[i] * row[j] for j in range(4))
            for i in range(4)
        ]
        target = [_FORGETTING * self._target[i] + weight * row[i] * goal for i in range(4)]
        return tuple(normal), tuple(target)  # type: ignore[return-value]

    def _solve(self, normal: tuple[Terms, Terms, Terms, Terms], target: Terms) -> Terms:
        """Minimise within the bounds, one coefficient after the other, from where we were.

        Cannot fail: the pull towards the profile keeps every diagonal positive.
        """
        start = _factors_of(self.profile, self.units)
        factors = list(self.factors)
        for _ in range(_NUM_SWEEPS):
            for i in range(4):
                others = sum(normal[i][j] * factors[j] for j in range(4) if j != i)
                best = (target[i] + _PULL * start[i] - others) / (normal[i][i] + _PULL)
                factors[i] = min(max(best, 0.0), _MAX_FACTOR)
        return (factors[0], factors[1], factors[2], factors[3])


def _units_of(profile: PrefillCost) -> Terms:
    """Give each coefficient a unit of its size; one that the profile lacks, a plausible one."""
    per_token_s = max(profile.per_token_s, 1e-9)
    base_s = max(profile.base_s, profile.floor_s, per_token_s)
    return (
        base_s,
        max(profile.per_request_s, base_s / 4.0),
        per_token_s,
        max(profile.per_attention_pair_s, per_token_s / 1e5),
    )


def _factors_of(cost: PrefillCost, units: Terms) -> Terms:
    return (
        cost.base_s / units[0],
        cost.per_request_s / units[1],
        cost.per_token_s / units[2],
        cost.per_attention_pair_s / units[3],
    )


def _dot(left: Terms, right: Terms) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _is_credible(terms: Terms, profile_s: float, actual_s: float) -> bool:
    """Refuse clocks that ran backwards, empty batches, and times off by orders of magnitude."""
    if not (math.isfinite(actual_s) and math.isfinite(profile_s)) or min(terms) < 0.0:
        return False
    return profile_s / _MAX_FACTOR <= actual_s <= profile_s * _MAX_FACTOR and actual_s > 0.0


def _scaled(terms: Terms, factor: float) -> Terms:
    a, b, c, d = terms
    return (factor * a, factor * b, factor * c, factor * d)
