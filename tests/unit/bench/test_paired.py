"""Systems are compared within rounds."""

import pytest

from bench.results.paired import PairedSample, Spread, summarise_pairs


def samples_of(**seconds):
    """One sample of each system in each round."""
    return [
        PairedSample(system, index, "case", value)
        for system, values in seconds.items()
        for index, value in enumerate(values)
    ]


def test_ratio_is_the_median_of_ratios_within_rounds():
    """A round in which the machine was slow for everybody changes nothing."""
    off, tiled = summarise_pairs(samples_of(off=[1.0, 2.0, 10.0], tiled=[1.1, 2.0, 12.0]), "off")
    assert (off.system, off.num_rounds, off.ratio) == ("off", 3, Spread(1.0, 1.0, 1.0))
    assert off.seconds == Spread(2.0, 1.0, 10.0)
    assert tiled.ratio.median == pytest.approx(1.1)
    assert (tiled.ratio.least, tiled.ratio.most) == (pytest.approx(1.0), pytest.approx(1.2))


def test_round_that_the_reference_has_not_reached_is_left_out():
    """An unfinished measurement compares what it can."""
    samples = samples_of(off=[1.0], tiled=[2.0, 9.0])
    assert summarise_pairs(samples, "off")[1].ratio == Spread(2.0, 2.0, 2.0)
    assert summarise_pairs(samples[1:], "off")[0].ratio is None


def test_cases_are_kept_apart_in_their_order():
    """Each case of each system has a summary of its own."""
    samples = [PairedSample("a", 0, case, 1.0) for case in (32, 8)]
    assert [s.case for s in summarise_pairs(samples, "a")] == [32, 8]
