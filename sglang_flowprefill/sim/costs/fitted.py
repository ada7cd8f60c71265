"""The server's own form of cost, ``PrefillCost``, as a cost model, and its fit without numpy."""

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.core.predictor import num_attention_pairs
from sglang_flowprefill.sim.costs.pass_cost import PassCost, PassSeconds

Sample = tuple[int, int, float]
"""New tokens, cached tokens, seconds."""

_MIN_FITTED_TOKENS = 512
"""Below, launches and small products dominate: a floor and not a line."""


@dataclass(frozen=True, slots=True)
class FittedCost:
    """A ``PrefillCost``, with a decode step of constant parts.

    Attributes:
        cost: Of prefills.
        source: Where it comes from.
        step_s: Seconds of a decode step...
        step_request_s: ...and these for each request in it...
        step_token_s: ...and these for each token of context.
    """

    cost: PrefillCost
    source: str
    step_s: float = 0.0
    step_request_s: float = 0.0
    step_token_s: float = 0.0

    def prefill(self, num_tokens: int, num_pairs: float, num_requests: int) -> PassSeconds:
        """Return the predicted time."""
        attention_s = self.cost.per_attention_pair_s * num_pairs
        work_s = self.cost.per_request_s * num_requests + self.cost.per_token_s * num_tokens
        total_s = self.cost.total_s(work_s + attention_s)
        return PassSeconds(total_s, min(attention_s, total_s))

    def decode_s(self, num_requests: int, num_context_tokens: int) -> float:
        """Return the predicted time."""
        return (
            self.step_s
            + self.step_request_s * num_requests
            + self.step_token_s * num_context_tokens
        )


def fit_prefill_cost(samples: Sequence[Sample]) -> PrefillCost:
    """Fit base, token and pair cost by least squares on relative errors, none negative.

    Args:
        samples: At least three different lengths of at least 512 tokens, or of any length where
            those are fewer.
    """
    fitted = [s for s in samples if s[0] >= _MIN_FITTED_TOKENS]
    if len({n for n, _, _ in fitted}) < 3:
        fitted = list(samples)
    rows = [
        [1.0 / seconds, n / seconds, num_attention_pairs(n, p) / seconds]
        for n, p, seconds in fitted
    ]
    base_s, token_s, pair_s = _best_non_negative(rows)
    floor_s = min(seconds for _, _, seconds in samples)
    return PrefillCost(base_s, token_s, pair_s, floor_s)


def predictor_of(cost: PassCost) -> PrefillCost:
    """Return the predictor that a server would fit to this cost at its start."""
    lengths = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    shapes = [*((n, 0) for n in lengths), (512, 2048), (2048, 8192), (8192, 0), (16_384, 0)]
    return fit_prefill_cost(
        [(n, p, cost.prefill(n, num_attention_pairs(n, p), 1).total_s) for n, p in shapes]
    )


def saturation_tokens(cost: PassCost) -> int:
    """Return the tokens from which on throughput hardly grows: a server's budget of a batch."""
    lengths = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    rates = {n: n / cost.prefill(n, num_attention_pairs(n), 1).total_s for n in lengths}
    return min(n for n, rate in rates.items() if rate >= 0.9 * max(rates.values()))


def _best_non_negative(rows: Sequence[Sequence[float]]) -> list[float]:
    """Solve ``rows @ x = 1`` for x >= 0 by trying every subset of the three columns."""
    best, best_error = [0.0, 0.0, 0.0], float("inf")
    for columns in ((0, 1, 2), (1, 2), (0, 1), (0, 2), (0,), (1,), (2,)):
        solution = _least_squares([[row[i] for i in columns] for row in rows])
        if solution is None or min(solution) < 0.0:
            continue
        full = [0.0, 0.0, 0.0]
        for column, value in zip(columns, solution, strict=True):
            full[column] = value
        error = sum((sum(a * b for a, b in zip(row, full, strict=True)) - 1.0) ** 2 for row in rows)
        if error < best_error:
            best, best_error = full, error
    return best


def _least_squares(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """Solve ``rows @ x = 1`` by the normal equations; None if they are singular."""
    size = len(rows[0])
    scale = [max(abs(row[i]) for row in rows) or 1.0 for i in range(size)]
    scaled = [[value / scale[i] for i, value in enumerate(row)] for row in rows]
    matrix = [
        [sum(row[i] * row[j] for row in scaled) for j in range(size)]
        + [sum(row[i] for row in scaled)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k, i=i: abs(matrix[k][i]))  # type: ignore[misc]
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        if abs(matrix[i][i]) < 1e-12:
            return None
        for k in range(size):
            if k != i:
                factor = matrix[k][i] / matrix[i][i]
                matrix[k] = [a - factor * b for a, b in zip(matrix[k], matrix[i], strict=True)]
    return [matrix[i][size] / matrix[i][i] / scale[i] for i in range(size)]
