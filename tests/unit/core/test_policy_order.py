"""Orders among candidates, as tables."""

import math
import re
from pathlib import Path

import pytest

from sglang_flowprefill.core import (
    POLICIES,
    Candidate,
    Edf,
    Fcfs,
    Hrrn,
    PolicyOptions,
    SEdf,
    SEdfPaper,
    Sjf,
    make_policy,
)

NOW_S = 100.0
POLICY_PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "policy.md"


def order(policy, **candidates):
    """Return the names of the candidates, first to run first."""
    return sorted(candidates, key=lambda name: policy.key(candidates[name], NOW_S))


def due_in(seconds, *, remaining_s=0.01, ttft_slo_s=10.0):
    """Return a candidate whose deadline is that far away."""
    return Candidate(NOW_S + seconds - ttft_slo_s, ttft_slo_s, remaining_s)


# ---- s-edf ----


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        pytest.param(
            {"late": due_in(3), "soon": due_in(1), "later": due_in(5)},
            ["soon", "late", "later"],
            id="feasible: earliest deadline first",
        ),
        pytest.param(
            {"doomed": due_in(1, remaining_s=2), "feasible": due_in(5)},
            ["feasible", "doomed"],
            id="doomed after feasible, though its deadline is earlier",
        ),
        pytest.param(
            {"zero": due_in(1, remaining_s=1), "feasible": due_in(5)},
            ["feasible", "zero"],
            id="no slack at all counts as doomed",
        ),
        pytest.param(
            {
                "late": due_in(4, remaining_s=9),
                "past": due_in(-2),
                "soon": due_in(1, remaining_s=9),
            },
            ["past", "soon", "late"],
            id="doomed: earliest deadline first",
        ),
        pytest.param(
            {"starving": due_in(-91, remaining_s=5), "feasible": due_in(0.5)},
            ["starving", "feasible"],
            id="past the starvation bound before everything",
        ),
        pytest.param(
            {"at bound": due_in(-90), "feasible": due_in(0.5)},
            ["feasible", "at bound"],
            id="exactly at the starvation bound is not past it",
        ),
        pytest.param(
            {"second": due_in(-95), "first": due_in(-96)},
            ["first", "second"],
            id="past the bound: earliest deadline first",
        ),
        pytest.param(
            {
                "new": Candidate(NOW_S - 1.0, 3.0, 0.01),
                "old": Candidate(NOW_S - 2.0, 4.0, 0.01),
            },
            ["old", "new"],
            id="equal deadlines: earlier arrival first",
        ),
    ],
)
def test_s_edf_order(candidates, expected):
    """S-EDF runs the starving, then the feasible, then the doomed, each by earliest deadline."""
    assert order(SEdf(starvation_factor=10.0), **candidates) == expected


def test_starvation_bound_is_in_multiples_of_the_own_slo():
    """A tight SLO starves sooner than a loose one at the same age."""
    tight, loose = Candidate(NOW_S - 5, 1.0, 0.9), Candidate(NOW_S - 5, 4.0, 0.1)
    feasible = due_in(3)
    assert order(SEdf(4.0), tight=tight, loose=loose, feasible=feasible) == [
        "tight",
        "feasible",
        "loose",
    ]


def test_a_claim_that_nobody_could_meet_does_not_starve_sooner():
    """Ten seconds of work that claim a millisecond wait as if they had claimed ten seconds."""
    greedy, honest = Candidate(NOW_S - 35, 0.001, 10.0), due_in(0.5)
    assert order(SEdf(4.0), greedy=greedy, honest=honest) == ["honest", "greedy"]
    half_done = Candidate(NOW_S - 35, 0.001, 5.0, own_s=10.0)
    assert order(SEdf(4.0), greedy=half_done, honest=honest) == ["honest", "greedy"]
    starving = Candidate(NOW_S - 41, 0.001, 5.0, own_s=10.0)
    assert order(SEdf(4.0), greedy=starving, honest=honest) == ["greedy", "honest"]
    tiny = Candidate(NOW_S - 0.3, 0.001, 0.01)
    assert order(SEdf(4.0), tiny=tiny, honest=honest) == ["honest", "tiny"]


def test_without_starvation_bound_the_doomed_stay_last():
    """An infinite factor switches the bound off."""
    policy = SEdf(starvation_factor=math.inf)
    assert order(policy, ancient=due_in(-1e6), feasible=due_in(1)) == ["feasible", "ancient"]


# ---- the decision table of the documentation ----


def table_rows():
    """Return the rows of the decision table as cells."""
    text = POLICY_PAGE.read_text(encoding="utf-8")
    lines = re.findall(r"^\| ([A-F]) \|(.*)\|$", text, flags=re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in lines}


def test_the_documented_decision_table_is_what_the_paper_computes():
    """Deadline, slack and priority by the published formula, and the order that follows."""
    rows = table_rows()
    assert list(rows) == list("ABCDEF")
    candidates, priorities = {}, {}
    for name, (arrival, slo, remaining, deadline, slack, priority, _, _) in rows.items():
        candidates[name] = Candidate(float(arrival), float(slo), float(remaining))
        assert candidates[name].deadline_s == float(deadline)
        assert candidates[name].slack_s(NOW_S) == float(slack)
        sign = 1 if float(slack) > 0 else -1  # no slack counts as negative
        assert priority == f"{'+' if sign > 0 else '-'}1/{deadline}"
        priorities[name] = sign / float(deadline)
    by_formula = sorted(priorities, key=priorities.__getitem__, reverse=True)
    assert order(SEdfPaper(), **candidates) == by_formula
    for column, policy in ((6, SEdfPaper()), (7, SEdf())):
        documented = sorted(rows, key=lambda name: int(rows[name][column]))
        assert order(policy, **candidates) == documented, policy


@pytest.mark.parametrize("now_s", [1e-3, 1.0, 1e6])
def test_the_order_of_the_paper_is_that_of_its_formula(now_s):
    """Whatever the clock shows, if it is positive."""
    policy = SEdfPaper()
    candidates = [
        Candidate(now_s * age, slo_s, remaining_s)
        for age in (0.25, 0.5, 1.0)
        for slo_s in (0.5, 2.0, 64.0)
        for remaining_s in (0.0, 1.0, 32.0)
    ]

    def priority(candidate):
        sign = 1 if candidate.slack_s(now_s) > 0 else -1
        return sign / candidate.deadline_s

    by_policy = sorted(candidates, key=lambda c: policy.key(c, now_s))
    priorities = [priority(candidate) for candidate in by_policy]
    assert priorities == sorted(priorities, reverse=True)


# ---- the others ----

TABLE = {
    "old and long": Candidate(40.0, 50.0, 30.0),  # deadline 90, response ratio 1 + 2
    "tight": Candidate(98.0, 3.0, 4.0),  # deadline 101, doomed, ratio 1 + 0.5
    "loose": Candidate(97.0, 60.0, 1.0),  # deadline 157, ratio 1 + 3
    "nearly done": Candidate(99.0, 9.0, 0.5),  # deadline 108, ratio 1 + 2
}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Fcfs(), ["old and long", "loose", "tight", "nearly done"]),
        (Edf(), ["old and long", "tight", "nearly done", "loose"]),
        (Sjf(), ["nearly done", "loose", "tight", "old and long"]),
        (Hrrn(), ["loose", "old and long", "nearly done", "tight"]),
        (SEdf(), ["nearly done", "loose", "old and long", "tight"]),
        (SEdf(1.0), ["old and long", "nearly done", "loose", "tight"]),
        (SEdfPaper(), ["nearly done", "loose", "tight", "old and long"]),
    ],
)
def test_the_same_four_in_every_order(policy, expected):
    """What each policy looks at, on one example."""
    assert order(policy, **TABLE) == expected


def test_hrrn_bears_a_prefill_that_outran_its_prediction():
    """With nothing left by the prediction the ratio would have no denominator."""
    assert order(Hrrn(), outran=Candidate(90.0, 1.0, 0.0), new=Candidate(99.0, 1.0, 1.0)) == [
        "outran",
        "new",
    ]


@pytest.mark.parametrize(
    ("remaining_s", "slack_s"), [(0.0, 2.0), (1.5, 0.5), (2.0, 0.0), (5.0, -3.0)]
)
def test_slack_is_deadline_minus_now_minus_remaining(remaining_s, slack_s):
    """Slack says how long a candidate may still wait; negative means doomed."""
    assert Candidate(98.0, 4.0, remaining_s).slack_s(NOW_S) == pytest.approx(slack_s)


def test_a_head_start_keeps_the_slack():
    """Earlier deadline, less work: whether it can still make it stays as it is."""
    candidate = Candidate(98.0, 4.0, 1.5)
    ahead = candidate.ahead_by(0.5)
    assert (ahead.deadline_s, ahead.remaining_s) == (101.5, 1.0)
    assert ahead.slack_s(NOW_S) == candidate.slack_s(NOW_S)


@pytest.mark.parametrize(("name", "may_preempt"), [
    ("s-edf", True), ("s-edf-paper", True), ("edf", True), ("sjf", True),
    ("hrrn", False), ("fcfs", False),
])  # fmt: skip
def test_policies_are_made_by_name(name, may_preempt):
    """What a user writes; FCFS and HRRN never take the machine from a running prefill."""
    assert make_policy(name).may_preempt is may_preempt
    assert name in POLICIES


def test_there_is_no_further_policy():
    """A new row needs a row in the tables above."""
    assert len(POLICIES) == 6
    with pytest.raises(KeyError):
        make_policy("lifo")


def test_policies_take_their_options():
    """Those that a policy has; the others are ignored."""
    options = PolicyOptions(starvation_factor=3.0)
    assert make_policy("s-edf", options) == SEdf(3.0)
    assert make_policy("edf", options) == Edf()
