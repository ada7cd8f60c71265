"""Turns measured prefill times into a ``PrefillCost`` and a token budget for batches.

Least squares on *relative* errors, since a 5 ms error matters for a 50 ms prefill and not for a
10 s one, with coefficients that cannot be negative: a longer prompt is never predicted faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from sglang_flowprefill.core.predictor import PrefillCost, num_attention_pairs

_SATURATED = 0.9
"""Share of the best throughput from which on more tokens in a batch buy little."""


@dataclass(frozen=True, slots=True, order=True)
class PrefillShape:
    """What a forward pass prefills: some sequences, all alike.

    Attributes:
        num_uncached_tokens: Tokens to compute, of each sequence.
        num_cached_tokens: Tokens before them, of each sequence.
        num_requests: Sequences.
    """

    num_uncached_tokens: int
    num_cached_tokens: int = 0
    num_requests: int = 1

    def __str__(self) -> str:
        """Name it for tables and logs."""
        batch = f"{self.num_requests} x " if self.num_requests > 1 else ""
        prefix = f" after {self.num_cached_tokens}" if self.num_cached_tokens else ""
        return f"{batch}{self.num_uncached_tokens} tokens{prefix}"

    @property
    def terms(self) -> tuple[float, float, float, float]:
        """What the coefficients of ``PrefillCost`` multiply: base, request, token, pair."""
        pairs = num_attention_pairs(self.num_uncached_tokens, self.num_cached_tokens)
        num_requests = self.num_requests
        return (1.0, num_requests, num_requests * self.num_uncached_tokens, num_requests * pairs)


@dataclass(frozen=True, slots=True)
class ProfileSample:
    """One measured prefill.

    Attributes:
        shape: What was prefilled.
        duration_s: Seconds of the forward pass.
    """

    shape: PrefillShape
    duration_s: float

    def predicted_s(self, cost: PrefillCost) -> float:
        """Return what a cost predicts for it."""
        _, num_requests, num_tokens, num_pairs = self.shape.terms
        return cost.total_s(
            cost.per_request_s * num_requests
            + cost.per_token_s * num_tokens
            + cost.per_attention_pair_s * num_pairs
        )


def fit_prefill_cost(samples: Sequence[ProfileSample]) -> PrefillCost:
    """Fit the coefficients of ``PrefillCost``.

    That of a further sequence stays zero where no sample has several: nothing then tells it from
    the cost of a forward pass.

    Args:
        samples: At least three different lengths.

    Raises:
        ValueError: Fewer than three samples.
    """
    if len(samples) < 3:
        raise ValueError(f"a prefill cost needs at least 3 samples, got {len(samples)}")
    durations = np.array([s.duration_s for s in samples])
    terms = np.array([s.shape.terms for s in samples])
    if (terms[:, 1] == 1).all():
        terms[:, 1] = 0.0
    relative = terms / durations[:, None]
    base, per_request, per_token, per_pair = _non_negative_least_squares(relative)
    return PrefillCost(base, per_token, per_pair, float(durations.min()) / 2, per_request)


def saturation_tokens(samples: Sequence[ProfileSample]) -> int:
    """Return the tokens at which throughput saturates: the budget of a batch.

    The shortest measured prompt, without prefix, at nine tenths of the best throughput of any.
    More tokens in a batch would delay its head and serve hardly more per second.

    Args:
        samples: At least one of a single sequence without prefix.
    """
    throughput = {
        s.shape.num_uncached_tokens: s.shape.num_uncached_tokens / s.duration_s
        for s in samples
        if s.shape.num_requests == 1 and not s.shape.num_cached_tokens
    }
    best = max(throughput.values())
    return min(n for n, rate in throughput.items() if rate >= _SATURATED * best)


def _non_negative_least_squares(terms: npt.NDArray[np.float64]) -> list[float]:
    """Solve ``terms @ x = 1`` for x >= 0 by trying every subset of the columns.

    Fifteen small systems are exact, and spare a dependency on scipy.
    """
    num_terms = terms.shape[1]
    target = np.ones(len(terms))
    best, best_error = np.zeros(num_terms), np.inf
    for size in range(num_terms, 0, -1):
        for columns in combinations(range(num_terms), size):
            subset = terms[:, columns]
            solution = np.linalg.lstsq(subset, target, rcond=None)[0]
            error = float(np.square(subset @ solution - target).sum())
            if (solution >= 0).all() and error < best_error:
                best, best_error = np.zeros(num_terms), error
                best[list(columns)] = solution
    return [float(value) for value in best]
