"""Two systems under the same requests, compared request by request."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from sglang_flowprefill.sim.study.serving import Row, Run


@dataclass(frozen=True, slots=True)
class PairedClass:
    """One class under two systems.

    Attributes:
        class_name: Its name.
        num_requests: Requests.
        num_gained: Met their objectives with the second system only.
        num_lost: Met them with the first only.
        median_s: Median of the second's TTFT less the first's, of each request.
        mean_s: Mean of it.
    """

    class_name: str
    num_requests: int
    num_gained: int
    num_lost: int
    median_s: float
    mean_s: float


def compare(first: Run, second: Run) -> list[PairedClass]:
    """Compare two runs of the same requests, class by class, all of them last."""
    pairs = list(zip(first.rows, second.rows, strict=True))
    names = list(first.classes)
    groups = [(name, [p for p in pairs if p[0].slo_class == name]) for name in names]
    return [_paired(name, group) for name, group in [*groups, ("all", pairs)]]


def _paired(name: str, pairs: Sequence[tuple[Row, Row]]) -> PairedClass:
    differences_s = [b.ttft_s - a.ttft_s for a, b in pairs]
    return PairedClass(
        name,
        len(pairs),
        sum(b.is_met and not a.is_met for a, b in pairs),
        sum(a.is_met and not b.is_met for a, b in pairs),
        median(differences_s),
        fmean(differences_s),
    )
