"""Numbers as text, with no more digits than their spread supports."""

import math
from collections.abc import Sequence

from bench.goodput.analysis import Answer, answers, spread_of, unanswered_below
from bench.goodput.result import Search
from bench.results.paired import Spread, spread

NOTHING = "-"
# Half the spread as a share of the median, up to which a third digit means something.
_CLOSE = 0.05


def digits_for(value: Spread) -> int:
    """Return the digits after the point with which to write a median: two or three in all.

    Three where the spread is narrow, and after a leading 1, where two would be a tenth apart.

    >>> digits_for(Spread(2.934, 2.881, 3.004)), digits_for(Spread(2.934, 2.5, 3.2))
    (2, 1)
    >>> digits_for(Spread(1.15, 1.15, 1.66))
    2
    >>> digits_for(Spread(41.0, 30.0, math.inf)), digits_for(Spread(0.0, 0.0, 0.0))
    (0, 0)
    """
    if not value.median:
        return 0
    magnitude = math.floor(math.log10(value.median))
    is_close = 0 < value.most - value.least <= 2 * _CLOSE * value.median
    num_significant = 3 if is_close or value.median < 2 * 10**magnitude else 2
    return max(0, num_significant - 1 - magnitude)


def spread_text(value: Spread | None) -> str:
    """Write median and ends; only the median where all look the same. None is a dash.

    >>> spread_text(Spread(5.5, 5.0, 7.2)), spread_text(Spread(25.2, 21.0, math.inf))
    ('5.5 (5.0 to 7.2)', '25 (21 or more)')
    >>> spread_text(Spread(0.41, 0.41, 0.41)), spread_text(None)
    ('0.41', '-')
    """
    if value is None:
        return NOTHING
    digits = digits_for(value)
    middle, least, most = (f"{x:.{digits}f}" for x in (value.median, value.least, value.most))
    if value.most == math.inf:
        return middle if least == middle else f"{middle} ({least} or more)"
    return middle if least == most else value.text(digits)


def goodput_text(searches: Sequence[Search]) -> str:
    """Write max goodput: median, and from the lowest rate that passed to the highest that failed.

    Where the median met the goal at no rate, the lowest rate that failed stands for it.

    Args:
        searches: Of one kind, one for each seed.

    >>> met, failed = Search(0, 1.0, 0.9, 0.24, 0.288), Search(1, 1.0, 0.9, 0.0, 0.2)
    >>> goodput_text([met, failed, failed]), goodput_text([met]), goodput_text([failed])
    ('under 0.2 (0 to 0.29)', '0.24 (0.24 to 0.29)', 'under 0.2')
    """
    if not searches:
        return NOTHING
    found = spread_of(answers(searches))
    if found.median:
        return spread_text(found)
    bound = unanswered_below(searches)
    middle = f"under {bound:.2g}"
    return middle if found.most <= bound else f"{middle} (0 to {found.most:.2g})"


def median_goodput_text(searches: Sequence[Search]) -> str:
    """Write the median of what ``goodput_text`` writes.

    >>> median_goodput_text([Search(i, 1.0, 0.9, rate, 9.0) for i, rate in enumerate((2.5, 3, 4))])
    '3.0'
    """
    return goodput_text(searches).partition(" (")[0]


def ratio_text(ratios: Sequence[Answer]) -> str:
    """Write ratios; where some are bounds, their median is one too.

    >>> ratio_text([Answer(3.0, 2.5, 3.6)]), ratio_text([Answer(15.0, 15.0, math.inf)])
    ('3.0 (2.5 to 3.6)', 'more than 15.0')
    """
    if not ratios:
        return NOTHING
    more_than = "more than " if any(ratio.is_bound for ratio in ratios) else ""
    return more_than + spread_text(spread_of(ratios))


def share_text(shares: Sequence[float], num_requests: int) -> str:
    """Write shares of requests as percent, no finer than one request of each replay.

    >>> share_text([0.9083, 0.925, 0.9167], 120)
    '91.7 % (90.8 to 92.5)'
    >>> share_text([0.95], 20), share_text([], 120)
    ('95 %', '-')
    """
    if not shares:
        return NOTHING
    digits = 1 if num_requests > 100 else 0
    percent = spread([share * 100 for share in shares])
    middle, least, most = (f"{x:.{digits}f}" for x in (percent.median, percent.least, percent.most))
    return f"{middle} %" if least == most else f"{middle} % ({least} to {most})"
