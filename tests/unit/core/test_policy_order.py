"""Orders among candidates: S-EDF's three tiers, and plain arrival order."""

import math

import pytest

from sglang_flowprefill.core import POLICY_TYPES, Candidate, Fcfs, SEdf

NOW_S = 100.0


def order(policy, **candidates):
    """Return the names of the candidates, first to run first."""
    return sorted(candidates, key=lambda name: policy.key(candidates[name], NOW_S))


def due_in(seconds, *, remaining_s=0.01, ttft_slo_s=10.0):
    """Return a candidate whose deadline is that far away."""
    return Candidate(NOW_S + seconds - ttft_slo_s, ttft_slo_s, remaining_s)


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
    tight, loose = Candidate(NOW_S - 5, 1.0, 9.0), Candidate(NOW_S - 5, 4.0, 0.1)
    feasible = due_in(3)
    assert order(SEdf(4.0), tight=tight, loose=loose, feasible=feasible) == [
        "tight",
        "feasible",
        "loose",
    ]


def test_without_starvation_bound_the_doomed_stay_last():
    """An infinite factor switches the bound off."""
    policy = SEdf(starvation_factor=math.inf)
    assert order(policy, ancient=due_in(-1e6), feasible=due_in(1)) == ["feasible", "ancient"]


@pytest.mark.parametrize(
    ("remaining_s", "slack_s"), [(0.0, 2.0), (1.5, 0.5), (2.0, 0.0), (5.0, -3.0)]
)
def test_slack_is_deadline_minus_now_minus_remaining(remaining_s, slack_s):
    """Slack says how long a candidate may still wait; negative means doomed."""
    assert Candidate(98.0, 4.0, remaining_s).slack_s(NOW_S) == pytest.approx(slack_s)


def test_fcfs_is_arrival_order():
    """FCFS looks at neither deadline nor work."""
    first, second = Candidate(1.0, 100.0, 50.0), Candidate(2.0, 0.1, 0.01)
    assert order(Fcfs(), second=second, first=first) == ["first", "second"]


def test_only_s_edf_may_preempt():
    """FCFS is the baseline that never takes the machine from a running prefill."""
    assert {name: make().may_preempt for name, make in POLICY_TYPES.items()} == {
        "s-edf": True,
        "fcfs": False,
    }
