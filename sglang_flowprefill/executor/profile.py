"""Turns measured prefill times into a ``PrefillCost``.

Least squares on *relative* errors, since a 5 ms error matters for a 50 ms prefill and not for a
10 s one, with coefficients that cannot be negative: a longer prompt is never predicted faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from sglang_flowprefill.core.predictor import PrefillCost, num_attention_pairs


@dataclass(frozen=True, slots=True)
class ProfileSample:
    """One measured prefill.

    Attributes:
        num_uncached_tokens: Tokens computed.
        num_cached_tokens: Tokens found in the prefix cache.
        duration_s: Seconds of the forward pass.
    """

    num_uncached_tokens: int
    num_cached_tokens: int
    duration_s: float


def fit_prefill_cost(samples: Sequence[ProfileSample]) -> PrefillCost:
    """Fit the three coefficients of ``PrefillCost``.

    Args:
        samples: At least three different lengths.

    Raises:
        ValueError: Fewer than three samples.
    """
    if len(samples) < 3:
        raise ValueError(f"a prefill cost needs at least 3 samples, got {len(samples)}")
    durations = np.array([s.duration_s for s in samples])
    terms = np.array(
        [
            (
                1.0,
                s.num_uncached_tokens,
                num_attention_pairs(s.num_uncached_tokens, s.num_cached_tokens),
            )
            for s in samples
        ]
    )
    base, per_token, per_pair = _non_negative_least_squares(terms / durations[:, None])
    return PrefillCost(base, per_token, per_pair, floor_s=float(durations.min()) / 2)


def _non_negative_least_squares(terms: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Solve ``terms @ x = 1`` for x >= 0 by trying every subset of the three terms.

    Seven small systems are exact, and spare a dependency on scipy.
    """
    target = np.ones(len(terms))
    best, best_error = np.zeros(3), np.inf
    for size in (3, 2, 1):
        for columns in combinations(range(3), size):
            subset = terms[:, columns]
            solution = np.linalg.lstsq(subset, target, rcond=None)[0]
            error = float(np.square(subset @ solution - target).sum())
            if (solution >= 0).all() and error < best_error:
                best, best_error = np.zeros(3), error
                best[list(columns)] = solution
    return float(best[0]), float(best[1]), float(best[2])
