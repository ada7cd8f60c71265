"""The search finds the rate at which a system stops to meet a goal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.goodput.search import Verdict, bracket_of, next_rate

RESOLUTION = 0.025


def search(truth_per_s, start_per_s, step=1.15, known=()):
    """Search a system that passes up to ``truth_per_s``; return the verdicts in order."""
    verdicts = list(known)
    while rate := next_rate(
        verdicts, start_per_s, step=step, resolution=RESOLUTION, lowest_per_s=0.02
    ):
        verdicts.append(Verdict(rate, rate <= truth_per_s))
        assert len(verdicts) < 60, "the search goes on for ever"
    return verdicts


@given(truth=st.floats(0.05, 50.0), start=st.floats(0.02, 50.0), step=st.floats(1.02, 2.0))
def test_any_truth_is_bracketed_from_any_start(truth, start, step):
    """However wrong the first guess, the truth ends up in a bracket as narrow as asked for."""
    bracket = bracket_of(search(truth, start, step))
    assert bracket.passed_per_s <= truth < bracket.failed_per_s
    assert bracket.failed_per_s <= bracket.passed_per_s * (1 + RESOLUTION)


def test_a_good_guess_saves_probes():
    """What a first seed found makes the search of the next one short."""
    assert len(search(2.0, 1.99, step=1.05)) <= 4
    assert len(search(2.0, 1.99, step=1 + 0.999 * RESOLUTION)) == 2
    assert len(search(2.0, 2.01, step=1 + 0.999 * RESOLUTION)) == 2
    assert len(search(2.0, 1.94, step=1 + 0.999 * RESOLUTION)) == 3
    assert len(search(2.0, 2.06, step=1 + 0.999 * RESOLUTION)) == 3
    assert len(search(2.0, 0.1)) > len(search(2.0, 1.9))


def test_a_search_goes_on_where_it_was():
    """Given its earlier verdicts, it asks for nothing twice and ends at the same rates."""
    whole = search(3.0, 1.0)
    for num_known in range(len(whole)):
        assert search(3.0, 1.0, known=whole[:num_known]) == whole


def test_a_hopeless_system_ends_the_search():
    """One that fails at the lowest rate has no goodput, and the search says so."""
    verdicts = search(0.0, 1.0)
    assert verdicts[-1].rate_per_s == pytest.approx(0.02)
    assert bracket_of(verdicts).passed_per_s == 0.0


def test_a_pass_above_a_failure_does_not_count():
    """Noise can let a higher rate pass; the answer stays below the lowest rate that failed."""
    bracket = bracket_of(Verdict(*v) for v in ((2.0, False), (2.5, True), (1.5, True)))
    assert (bracket.passed_per_s, bracket.failed_per_s) == (1.5, 2.0)
