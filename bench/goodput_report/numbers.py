"""Numbers as text, with no more digits than their spread supports."""

import math
from collections.abc import Sequence

from bench.goodput.analysis import unanswered_below
from bench.goodput.result import Search
from bench.paired import Spread, spread

NOTHING = "-"
_TOLERANCE = 0.025
_MAX_DIGITS = 3


def digits_for(value: float, uncertainty: float) -> int:
    """Return the digits after the point that an uncertainty leaves meaningful.

    >>> digits_for(2.934, 0.05), digits_for(2.934, 0.3), digits_for(41.0, 8.0)
    (2, 1, 0)
    """
    if uncertainty <= 0.0:
        return 1 if abs(value) >= 1.0 else 2
    return min(_MAX_DIGITS, max(0, -math.floor(math.log10(uncertainty))))


def spread_text(
    value: Spread | None, *, tolerance: float = _TOLERANCE, least_uncertainty: float | None = None
) -> str:
    """Write median and range; only the median where all values look the same.

    Args:
        value: What to write; None is a dash.
        tolerance: The value is no better known than this share of it, however close the values
            are to each other: what a search found, than half the bracket that it ended with.
        least_uncertainty: The same in absolute terms, instead.

    >>> spread_text(Spread(2.934, 2.881, 3.004))
    '2.93 (2.88 to 3.00)'
    >>> spread_text(Spread(1.75, 1.75, 1.75), tolerance=0.075)
    '1.8'
    >>> spread_text(Spread(0.41, 0.41, 0.41)), spread_text(None)
    ('0.41', '-')
    """
    if value is None:
        return NOTHING
    floor = tolerance * value.median if least_uncertainty is None else least_uncertainty
    digits = digits_for(value.median, max((value.most - value.least) / 2, floor))
    text = value.text(digits)
    middle, least, most = (f"{x:.{digits}f}" for x in (value.median, value.least, value.most))
    return middle if least == most else text


def goodput_text(searches: Sequence[Search], *, tolerance: float = _TOLERANCE) -> str:
    """Write max goodput, of the seeds that met the goal at no rate the lowest rate that failed.

    Args:
        searches: Of one kind, one for each seed.
        tolerance: As for ``spread_text``.

    >>> met, failed = Search(0, 1.0, 0.9, 0.24, 0.288), Search(1, 1.0, 0.9, 0.0, 0.2)
    >>> goodput_text([met, failed, failed]), goodput_text([met])
    ('under 0.2 (to 0.24)', '0.24')
    """
    if not searches:
        return NOTHING
    found = spread([search.max_rate_per_s for search in searches])
    bound = unanswered_below(searches)
    if not bound:
        return spread_text(found, tolerance=tolerance)
    middle, most = (
        f"{rate:.2f}" if rate >= bound else f"under {bound:.2g}"
        for rate in (found.median, found.most)
    )
    return middle if middle == most else f"{middle} (to {most})"


def median_goodput_text(searches: Sequence[Search], *, tolerance: float = _TOLERANCE) -> str:
    """Write the median of what ``goodput_text`` writes.

    >>> median_goodput_text([Search(i, 1.0, 0.9, rate, 9.0) for i, rate in enumerate((2.5, 3, 4))])
    '3.0'
    """
    return goodput_text(searches, tolerance=tolerance).partition(" (")[0]


def share_text(shares: Sequence[float], num_requests: int) -> str:
    """Write shares of requests as percent, no finer than one request of each replay.

    >>> share_text([0.9083, 0.925, 0.9167], 120)
    '91.7 % (90.8 to 92.5)'
    >>> share_text([0.95], 20), share_text([], 120)
    ('95 %', '-')
    """
    if not shares:
        return NOTHING
    percent = spread([share * 100 for share in shares])
    text = spread_text(percent, least_uncertainty=100 / num_requests)
    middle, bracket, rest = text.partition(" (")
    return f"{middle} %{bracket}{rest}"
