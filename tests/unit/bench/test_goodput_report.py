"""What a report says of a result, and the page in a browser. Results are made up."""

import argparse
import asyncio
import json
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from goodput_results import CLASS_SLOS_S, goodput_result, probe, system

from bench.__main__ import _parser
from bench.errors import UsageError
from bench.goodput.analysis import best_peer, greatest_loads
from bench.goodput.numbers import share_text, spread_text
from bench.goodput.result import GoodputResult, Search, SystemResult, write_result
from bench.goodput_report.class_figures import draw_ttft
from bench.goodput_report.command import PAGE, report_options, run_report, write_report
from bench.goodput_report.figures import draw_slo_scales
from bench.goodput_report.options import ReportOptions
from bench.goodput_report.repeats import repeats_table
from bench.goodput_report.selection import (
    common_rate,
    drawn_systems,
    probes_at_maximum,
    worst_shares,
)
from bench.goodput_report.tables import class_table, client_lateness, goodput_table
from bench.goodput_report.targets import judge
from bench.results.paired import Spread
from tests.browser import console_errors, prefer_colors

OPTIONS = ReportOptions()
PHONE_WIDTH = 390


def searched(name, *max_rates, failed=None, scale=1.0):
    """Return a system of which only the results of its searches are known."""
    found = SystemResult(name)
    found.searches = [
        Search(i, scale, 0.9, rate, failed or rate * 1.02) for i, rate in enumerate(max_rates)
    ]
    return found


def result_of(*systems):
    """Return a result of these systems."""
    made = GoodputResult({"title": "made up"}, "none", 1.0, dict(CLASS_SLOS_S))
    made.systems = {system.name: system for system in systems}
    return made


def verdict_on(result, words):
    """Return the one verdict whose claim holds these words."""
    (found,) = [v for v in judge(result, OPTIONS) if words in v.claim]
    return found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Spread(2.934, 2.881, 3.004), "2.93 (2.88 to 3.00)"),
        (Spread(2.934, 2.5, 3.2), "2.9 (2.5 to 3.2)"),
        (Spread(41.2, 30.0, 55.0), "41 (30 to 55)"),
        (Spread(1.149, 1.149, 1.66), "1.15 (1.15 to 1.66)"),
        (Spread(25.2, 21.0, inf), "25 (21 or more)"),
        (Spread(0.0, 0.0, 0.0), "0"),
        (Spread(0.41, 0.41, 0.41), "0.41"),
        (None, "-"),
    ],
)
def test_digits_follow_the_spread(value, text):
    """No digit is written that the next seed would change."""
    assert spread_text(value) == text


def test_shares_are_no_finer_than_one_request():
    """Of 20 requests, one is five percent."""
    assert share_text([0.95], 20) == "95 %"
    assert share_text([0.9083, 0.925, 0.9167], 120) == "91.7 % (90.8 to 92.5)"


def test_ratios_are_taken_seed_by_seed():
    """Both systems replayed the same requests, so a hard seed is hard for both."""
    result = result_of(searched("flowprefill", 8.0, 4.0), searched("stock", 1.0, 0.5))
    verdict = verdict_on(result, "that of stock")
    assert "is 8.00 (7.84 to 8.16) times" in verdict.claim
    assert verdict.outcome == "met"


def test_a_missed_target_says_by_how_much():
    """Three times where six were wanted is half of it."""
    verdict = verdict_on(
        result_of(searched("flowprefill", 3.0), searched("stock", 1.0)), "times that of stock"
    )
    assert verdict.outcome == "missed"
    assert "-50% from it" in verdict.detail
    assert "the spread of its search only" in verdict.claim


def test_a_seed_below_the_target_is_not_hidden_by_the_median():
    """The outcome says that not every seed met it."""
    ours, stock = searched("flowprefill", 5.0, 7.0, 8.0), searched("stock", 1.0, 1.0, 1.0)
    assert verdict_on(result_of(ours, stock), "times that of stock").outcome == "met in the median"


@pytest.mark.parametrize(("scale", "target"), [(1.0, "1 times"), (0.4, "1.5 times")])
def test_tight_objectives_have_a_target_of_their_own(scale, target):
    """Also where nothing else was searched."""
    ours, peer = searched("flowprefill", 3.0, scale=scale), searched("vllm", 1.0, scale=scale)
    assert f"at least {target}" in verdict_on(result_of(ours, peer), "best peer, vllm").detail


def test_a_system_that_never_passed_leaves_a_bound():
    """Its maximum is below the lowest rate that failed, so the ratio is more than that."""
    result = result_of(searched("flowprefill", 3.0), searched("stock", 0.0, failed=0.25))
    verdict = verdict_on(result, "that of stock")
    assert "more than 12.0 times" in verdict.claim
    assert "in 1 of which stock met the goal at no rate" in verdict.claim
    assert verdict.outcome == "met"
    (_, text, _), *_ = goodput_table(result, OPTIONS).rows[::-1]
    assert text == "under 0.25"


def test_settings_of_the_subject_are_no_peers():
    """The best peer is somebody else's, however good another setting of ours is."""
    result = result_of(
        searched("flowprefill", 3.0), searched("flowprefill-fcfs", 2.8), searched("vllm", 2.0)
    )
    assert best_peer(result, "flowprefill", 1.0, 0.9).name == "vllm"


def test_the_share_of_the_physical_limit_is_judged():
    """Prefills of half a second fill all time at two requests/s."""
    ours = searched("flowprefill", 1.5)
    ours.solo = [(1, 0.5), (100_000, 0.5)]
    ours.probes = [probe(1.5, 3.0, search.seed) for search in ours.searches]
    verdict = verdict_on(result_of(ours), "physical limit")
    assert "75.0 (75.0 to 76.5) %" in verdict.claim
    assert verdict.outcome == "missed"


def test_the_worst_class_is_compared_at_each_ones_own_maximum():
    """A system that lets one class be late does not pass for better."""
    result = goodput_result()
    ours, theirs = (
        worst_shares(probes_at_maximum(result.systems[name], 1.0, 0.9))
        for name in ("flowprefill", "stock")
    )
    assert len(ours) == len(theirs) == 3
    assert all(0.0 <= share <= 1.0 for share in ours)


def test_the_worst_class_is_compared_under_one_load_too():
    """What the best peer bears at most, replayed by the subject, request by request."""
    result = goodput_result()
    assert not [v for v in judge(result, OPTIONS) if "one load" in v.claim]
    ours, peer = result.systems["flowprefill"], result.systems["vllm-tuned"]
    for load in greatest_loads(peer, 1.0, 0.9):
        ours.probes.append(probe(load.rate_per_s, 1000.0, load.seed))
    verdict = verdict_on(result, "one load")
    assert "best peer, vllm-tuned" in verdict.claim
    assert "3 paired seeds" in verdict.claim
    assert verdict.outcome == "met"
    labels = [label for label, *_ in class_table(result, OPTIONS).rows]
    assert "flowprefill, at the load of vllm-tuned" in labels


def test_rates_at_which_every_class_is_in_time_are_compared():
    """The best peer at that may be another than the best at all requests together."""
    ours, fair, greedy = (searched(n, 4.0) for n in ("flowprefill", "vllm", "stock"))
    for each, rate in ((ours, 3.0), (fair, 1.5), (greedy, 1.0)):
        each.searches.append(Search(0, 1.0, 0.9, rate, rate * 1.02, every_class=True))
    result = result_of(ours, fair, greedy)
    verdict = verdict_on(result, "every class")
    assert "2.00 (1.96 to 2.04) times that of the best peer, vllm" in verdict.claim
    table = goodput_table(result, OPTIONS)
    assert table.headings[1:3] == (
        "requests/s, 90% in time",
        "requests/s, 90% of every class in time",
    )
    assert ("vllm", "4.00 (4.00 to 4.08)", "1.50 (1.50 to 1.53)") in [r[:3] for r in table.rows]


def test_abandoned_replays_draw_no_distribution():
    """Only requests that had ended are in them: their times would flatter the system."""
    fast = SystemResult("a", probes=[probe(1.0, 3.0, 0), probe(2.0, 3.0, 0)])
    slow = SystemResult("b", probes=[probe(1.0, 3.0, 0), probe(2.0, 0.2, 0)])
    assert slow.probes[1].is_abandoned
    assert common_rate([fast, slow], [1.0]) == 2.0
    assert common_rate([fast, slow], [1.0], whole_only=True) == 1.0


def test_subject_and_baseline_are_drawn_however_bad_they_are():
    """With more systems than lines can be told apart, these two are always among them."""
    limits = {f"peer-{i}": 5.0 + i for i in range(9)} | {"flowprefill": 1.0, "stock": 0.1}
    made = {name: system(name, limit, seeds=(0,)) for name, limit in limits.items()}
    shown = [s.name for s in drawn_systems(result_of(*made.values()), OPTIONS)]
    assert len(shown) == 7
    assert {"flowprefill", "stock"} <= set(shown)


def test_one_objective_scale_draws_no_curve(tmp_path):
    """A curve through one point says nothing."""
    assert draw_slo_scales(goodput_result(), OPTIONS, tmp_path) is None


def test_a_rate_that_nothing_was_measured_at_is_refused(tmp_path):
    """The error lists the rates that there are."""
    with pytest.raises(UsageError, match=r"there are .*1\.00"):
        draw_ttft(goodput_result(), replace(OPTIONS, cdf_rate_per_s=77.0), tmp_path)


def test_the_table_lists_every_system_by_max_goodput():
    """The best comes first, whatever was measured first."""
    table = goodput_table(goodput_result(), OPTIONS)
    assert [row[0] for row in table.rows] == ["flowprefill", "vllm-tuned", "stock"]


def test_runs_of_the_same_searches_are_compared():
    """A later median within the ends of the first run agrees, of rates and of ratios."""
    first = result_of(searched("flowprefill", 5.0, 5.5, 6.0), searched("vllm", 1.0, 1.1, 1.2))
    same = result_of(searched("flowprefill", 4.4, 5.1, 5.2), searched("vllm", 0.9, 0.9, 0.9))
    alone = result_of(searched("flowprefill", 6.0))
    table = repeats_table([first, same, alone], OPTIONS)
    outcomes = {label: cells[-1] for label, *cells in table.rows}
    assert outcomes == {
        "flowprefill": "2 of 2",
        "vllm": "0 of 1",
        "flowprefill over vllm": "0 of 1",
    }
    assert {row[0]: row[3] for row in table.rows}["vllm"] == "-"


def test_other_searches_are_no_repeats():
    """Another trace, another seed or another window asks for something else."""
    first, other = result_of(searched("flowprefill", 5.0)), result_of(searched("flowprefill", 5.0))
    other.head["config"] = {"window_s": 45.0}
    assert repeats_table([first, other], OPTIONS) is None
    other.head["config"] = {"out": "elsewhere", "lowest_rate": 0.2}
    assert repeats_table([first, other], OPTIONS) is not None


def test_the_clients_own_lateness_is_shown():
    """A client that falls behind flatters the server."""
    late = goodput_result().systems["stock"]
    late.probes = [
        replace(p, rows=tuple(replace(r, sent_s=r.scheduled_s + 0.25) for r in p.rows))
        for p in late.probes
    ]
    assert client_lateness(late) == "250.0"


def test_a_file_of_something_else_is_refused(tmp_path):
    """The error names the file."""
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"systems": {}}))
    args = _parser().parse_args(["report", str(path), "--out", str(tmp_path / "out")])
    with pytest.raises(UsageError, match=r"other\.json"):
        asyncio.run(run_report(args))


def test_a_result_without_any_finished_search_says_what_to_do(tmp_path):
    """An interrupted search goes on where it was."""
    with pytest.raises(UsageError, match="no search has come to an end"):
        write_report({Path("a.json"): result_of(SystemResult("stock"))}, OPTIONS, tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Return the page of two results, made by the command."""
    folder = tmp_path_factory.mktemp("report")
    write_result(folder / "a.json", goodput_result(scales=(0.4, 1.0), goals=(0.9, 0.95)))
    write_result(folder / "b.json", goodput_result({"flowprefill": 3.0, "<b>&": 1.0}))
    files = [str(folder / "a.json"), str(folder / "b.json")]
    args = _parser().parse_args(["report", *files, "--out", str(folder / "out")])
    assert isinstance(args, argparse.Namespace)
    assert report_options(args) == OPTIONS
    asyncio.run(run_report(args))
    return folder / "out" / PAGE


def test_pictures_are_files_too(page):
    """Each result has a folder of PNGs."""
    names = {path.stem for path in (page.parent / "result-1").glob("*.png")}
    assert names == {"goodput", "attainment", "slo-scale", "ttft", "classes"}


def test_the_page_opens_without_a_complaint_or_a_request(browser, page):
    """It is whole: it works offline, years later."""
    browser.get(page.as_uri())
    assert console_errors(browser) == []
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in fetched if not name.startswith("data:")] == []
    assert "http" not in page.read_text().replace("http://www.w3.org/", "")


def test_pictures_of_the_page_are_visible(browser, page):
    """Every figure has a picture with a size, a label for screen readers and a caption."""
    browser.get(page.as_uri())
    figures = browser.find_elements("css selector", "figure")
    assert len(figures) == 5 + 4
    for figure in figures:
        svg = figure.find_element("css selector", "svg[role=img]")
        assert svg.size["width"] > 200
        assert svg.size["height"] > 60
        assert svg.get_attribute("aria-label")
        assert figure.find_element("css selector", "figcaption").text


def test_tables_of_the_page_hold_every_system(browser, page):
    """A row each, in each table; names are text, whatever they contain."""
    browser.get(page.as_uri())
    for table in browser.find_elements("css selector", "#result-1 table"):
        heads = [cell.text for cell in table.find_elements("css selector", "tbody th")]
        assert sorted(heads) == ["flowprefill", "stock", "vllm-tuned"]
    other = browser.find_elements("css selector", "#result-2-settings tbody th")
    assert sorted(cell.text for cell in other) == ["<b>&", "flowprefill"]


def test_the_page_fits_a_phone(browser, page):
    """Nothing needs to be scrolled sideways but wide tables within their frames."""
    metrics = {"width": PHONE_WIDTH, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(page.as_uri())
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= PHONE_WIDTH
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_take_the_colours_of_the_page(browser, page, scheme):
    """Text inside pictures has the page's ink, light or dark."""
    prefer_colors(browser, scheme)
    try:
        browser.get(page.as_uri())
        ink, paper = browser.execute_script(
            "const style = getComputedStyle(document.body);"
            "return [style.color, style.backgroundColor]"
        )
        label = browser.find_element("css selector", "#result-1-goodput svg text")
        assert label.value_of_css_property("fill").replace("rgb(", "") in ink
        assert ink != paper
    finally:
        prefer_colors(browser, "light")
