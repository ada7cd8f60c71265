"""The bench of scheduling rounds."""

from itertools import count

import pytest

from bench.decision_cost import DecisionCost, main, make_queue, measure
from sglang_flowprefill.core import POLICIES


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_measured_on_the_rounds_that_the_columns_name(policy):
    """On a clock that ticks once per reading, each round takes one tick."""
    ticks = count()
    cost = measure(policy, num_waiting=20, num_repeats=2, clock=lambda: float(next(ticks)))
    assert cost == DecisionCost(20, goes_on_s=1.0, starts_s=1.0, first_round_s=1.0)


def test_queues_are_repeatable_and_as_long_as_asked():
    """Two runs measure the same queue."""
    assert make_queue(50) == make_queue(50)
    assert len(make_queue(50)) == len({request.request_id for request in make_queue(50)}) == 50


def test_a_table_is_printed(capsys):
    """One row per length of the queue."""
    main(["--policy", "edf", "--waiting", "3", "30", "--repeats", "1"])
    output = capsys.readouterr().out
    assert "policy edf" in output
    assert [line.split()[1] for line in output.splitlines() if "│" in line] == ["3", "30"]
