"""Fits a factor and an offset of the costs to what a server was measured to do under load.

The same requests are simulated at the times at which they were sent, again and again, until TTFT
percentiles of all classes are as close as they get. Under load a tenth of cost moves a percentile
by much more than a tenth, so that the fit is by simulation and not by division.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from sglang_flowprefill.core import PrefillRequest, Slo
from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.sim.costs.pass_cost import CorrectedCost
from sglang_flowprefill.sim.records import Arrival
from sglang_flowprefill.sim.study.serving import Deployment, percentile, serve

FRACTIONS = (0.5, 0.9, 0.99)
_FACTORS = (0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.8)
_OFFSETS_S = (0.0, 0.002, 0.005, 0.01, 0.02)
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """One request as a server was measured to serve it.

    Attributes:
        class_name: Its class.
        sent_s: When it was sent.
        num_input_tokens: Its prompt.
        num_output_tokens: Tokens that it got.
        slo_ttft_s: Its objective.
        ttft_s: What was measured; infinite if it failed.
    """

    class_name: str
    sent_s: float
    num_input_tokens: int
    num_output_tokens: int
    slo_ttft_s: float
    ttft_s: float


@dataclass(frozen=True, slots=True)
class ClassErrors:
    """Simulated against measured for one class.

    Attributes:
        num_requests: Requests.
        measured_s: TTFT at ``FRACTIONS``.
        simulated_s: The same.
        measured_attained: Share in time.
        simulated_attained: The same.
    """

    num_requests: int
    measured_s: Sequence[float]
    simulated_s: Sequence[float]
    measured_attained: float
    simulated_attained: float

    @property
    def relative(self) -> list[float]:
        """Simulated over measured, less 1, at each fraction."""
        return [
            s / m - 1.0 if math.isfinite(m) else math.nan
            for s, m in zip(self.simulated_s, self.measured_s, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration found.

    Attributes:
        factor: On all costs.
        offset_s: On top of each prefill pass.
        before: Errors by class with the costs as they came.
        after: Errors with both applied.
    """

    factor: float
    offset_s: float
    before: Mapping[str, ClassErrors]
    after: Mapping[str, ClassErrors]


def calibrate(deployment: Deployment, rows: Sequence[MeasuredRow]) -> Calibrated:
    """Fit factor and offset to measured rows.

    Raises:
        PlanError: There are too few rows.
    """
    if len(rows) < 20:  # percentiles of fewer say nothing
        raise PlanError(f"calibration needs at least 20 measured requests, got {len(rows)}")
    before = errors(deployment, rows)
    best, best_error = (1.0, 0.0), _badness(before)
    for factor, offset_s in _candidates():
        pass_error = _badness(errors(corrected(deployment, factor, offset_s), rows))
        if pass_error < best_error:
            best, best_error = (factor, offset_s), pass_error
    width = 0.1
    for _ in range(_ROUNDS):
        centre = best
        for x, y in product((-1, 0, 1), repeat=2):
            factor = centre[0] * (1.0 + x * width)
            offset_s = max(centre[1] + y * width * 0.02, 0.0)
            pass_error = _badness(errors(corrected(deployment, factor, offset_s), rows))
            if pass_error < best_error:
                best, best_error = (factor, offset_s), pass_error
        width /= 2
    return Calibrated(*best, before, errors(corrected(deployment, *best), rows))


def errors(deployment: Deployment, rows: Sequence[MeasuredRow]) -> dict[str, ClassErrors]:
    """Simulate measured requests, and compare by class; ``all`` comes last."""
    ordered = sorted(rows, key=lambda row: row.sent_s)
    arrivals = [
        Arrival(
            PrefillRequest(
                str(index),
                row.sent_s,
                Slo(row.slo_ttft_s, row.class_name),
                row.num_input_tokens,
            ),
            row.num_output_tokens,
        )
        for index, row in enumerate(ordered)
    ]
    run = serve(deployment, arrivals, 0.0)
    assert run is not None, "nobody asked to give up"
    names = dict.fromkeys(row.class_name for row in ordered)
    simulated = list(zip(ordered, run.rows, strict=True))
    compared = {}
    for name in [*names, "all"]:
        pairs = [pair for pair in simulated if name in (pair[0].class_name, "all")]
        measured_s = sorted(row.ttft_s for row, _ in pairs)
        simulated_s = sorted(row.ttft_s for _, row in pairs)
        compared[name] = ClassErrors(
            len(pairs),
            [percentile(measured_s, fraction) for fraction in FRACTIONS],
            [percentile(simulated_s, fraction) for fraction in FRACTIONS],
            sum(row.ttft_s <= row.slo_ttft_s for row, _ in pairs) / len(pairs),
            sum(row.has_met_ttft for _, row in pairs) / len(pairs),
        )
    return compared


def corrected(deployment: Deployment, factor: float, offset_s: float) -> Deployment:
    """Return a deployment with corrected costs."""
    cost = CorrectedCost(deployment.worker.cost, factor, offset_s)
    return replace(deployment, worker=replace(deployment.worker, cost=cost))


def _candidates() -> Iterator[tuple[float, float]]:
    return product(_FACTORS, _OFFSETS_S)


def _badness(by_class: Mapping[str, ClassErrors]) -> float:
    """Mean of absolute log ratios over classes and fractions; p99 counts half."""
    total = weights = 0.0
    for compared in by_class.values():
        triples = zip(compared.measured_s, compared.simulated_s, (1.0, 1.0, 0.5), strict=True)
        for measured_s, simulated_s, weight in triples:
            if math.isfinite(measured_s) and measured_s > 0.0:
                total += weight * abs(math.log(simulated_s / measured_s))
                weights += weight
    return total / weights if weights else 0.0
