"""Probes, searches and their file."""

from math import inf

import pytest
from rows import row

from bench.errors import UsageError
from bench.goodput.analysis import (
    Answer,
    answers,
    median_goodput,
    paired_ratios,
    shares_of_limit,
    spread_of,
    unanswered_below,
    worst_class,
)
from bench.goodput.result import (
    GoodputResult,
    Probe,
    Search,
    SystemResult,
    read_result,
    write_result,
)
from bench.results.paired import Spread


def probe(num_text_met, *, rate_per_s=2.0, seed=0, num_requests=20, is_abandoned=False):
    """Return ten text requests, so many of them in time, and ten files that all are."""
    rows = [row(i, "text", 0.5 if i < num_text_met else 2.0) for i in range(10)]
    rows += [row(10 + i, "file", 5.0, 8.0) for i in range(10)]
    kept = rows[:10] if is_abandoned else rows
    return Probe(rate_per_s, seed, 1.0, num_requests, is_abandoned, tuple(kept))


def test_a_probe_counts_every_request():
    """Overall, by class, and the class that an overall share hides."""
    whole = probe(6)
    assert whole.attained == pytest.approx(0.8)
    assert whole.class_attained == {"text": 0.6, "file": 1.0}
    assert whole.worst_class == ("text", 0.6)
    assert whole.meets(0.8)
    assert not whole.meets(0.8, every_class=True)


def test_an_abandoned_probe_is_a_miss_where_it_shows_one_and_silent_elsewhere():
    """Its open requests count as neither, so it may say nothing of a lower goal."""
    given_up = probe(6, is_abandoned=True)
    assert given_up.attained == pytest.approx(0.8)
    assert given_up.meets(0.9) is False
    assert given_up.meets(0.9, every_class=True) is False
    assert given_up.meets(0.7) is None
    assert given_up.worst_class is None


def result():
    """Return two systems with three and two seeds."""
    ours = SystemResult("ours", {"command": ["serve"]}, solo=[(4, 0.1), (12, 0.3)])
    peer = SystemResult("peer", {"command": []})
    for seed, rate in enumerate((4.0, 4.4, 4.2)):
        ours.probes.append(probe(9, rate_per_s=rate, seed=seed))
        ours.searches.append(Search(seed, 1.0, 0.9, rate, rate * 1.02))
    for seed, rate in enumerate((2.0, 2.2)):
        peer.searches.append(Search(seed, 1.0, 0.9, rate, rate * 1.02))
    return GoodputResult(
        {"title": "t", "schema_version": 1}, "generator", 0.25, {"text": 1.0}, {"ours": ours}
    ), peer


def test_seeds_are_paired_and_limits_are_of_the_same_requests():
    """A ratio is taken within a seed; a share, of the time that the unloaded prefills fill."""
    outcome, peer = result()
    ours = outcome.systems["ours"]
    searches = ours.searches_for(1.0, 0.9)
    ratios = paired_ratios(searches, peer.searches_for(1.0, 0.9))
    assert [ratio.value for ratio in ratios] == pytest.approx([2.0, 2.0])
    assert [ratio.least for ratio in ratios] == pytest.approx([2.0 / 1.02] * 2)
    assert [ratio.most for ratio in ratios] == pytest.approx([2.0 * 1.02] * 2)
    assert not any(ratio.is_bound for ratio in ratios)
    # Prompts of eight tokens lie halfway between the measured lengths: 0.2 s each.
    shares = shares_of_limit(ours, searches)
    assert [share.value for share in shares] == pytest.approx([0.8, 0.88, 0.84])
    assert shares[1].most == pytest.approx(0.88 * 1.02)
    assert ours.physical_limit_per_s == pytest.approx(5.0)
    assert worst_class(ours, searches) == ("text", 0.9)
    assert median_goodput(ours, 1.0, 0.9) == 4.2
    assert median_goodput(ours, 1.0, 0.9, every_class=True) < 0


def test_a_spread_holds_what_the_searches_left_open():
    """From the lowest rate that passed to the highest that failed: the truth may be anywhere."""
    searches = [Search(0, 1.0, 0.9, 5.5, 6.6), Search(1, 1.0, 0.9, 5.0, 7.2)]
    assert spread_of(answers(searches)) == Spread(5.25, 5.0, 7.2)


def test_who_met_the_goal_at_no_rate_leaves_a_bound():
    """Its answer lies under the lowest rate that failed, and the ratio is more than over that."""
    ours, never = Search(0, 1.0, 0.9, 3.0, 3.6), Search(0, 1.0, 0.9, 0.0, 0.2)
    assert paired_ratios([ours], [never]) == [Answer(pytest.approx(15.0), pytest.approx(15.0), inf)]
    assert paired_ratios([ours], [never])[0].is_bound
    assert unanswered_below([ours, never]) == 0.2
    assert unanswered_below([ours]) == 0.0


def test_what_is_written_reads_back(tmp_path):
    """Every probe, row and search."""
    outcome, _ = result()
    write_result(tmp_path / "goodput.json", outcome)
    assert read_result(tmp_path / "goodput.json") == outcome


@pytest.mark.parametrize("text", ["{", "{}", '{"systems": {}}', "[]"])
def test_another_file_is_refused(tmp_path, text):
    """With its name and what is wrong."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"other\.json is not a result"):
        read_result(path)
