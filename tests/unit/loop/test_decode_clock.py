"""When the next decode step is due, as the adapter tells the policy."""

import pytest

from sglang_flowprefill.core import DecodePacing, Slo
from sglang_flowprefill.loop.decode_clock import DecodeClock
from sglang_flowprefill.loop.engine import DecodingRequest

DEFAULT_TPOT_S = 0.1


def decoding(joined_s, tpot_s=None):
    """Return a request past its prefill, whose first token came at ``joined_s``."""
    return DecodingRequest(Slo(1.0, tpot_s=tpot_s), joined_s, 100, 10)


@pytest.fixture
def clock():
    """A clock without any lead."""
    return DecodeClock(DecodePacing(), DEFAULT_TPOT_S)


def test_a_request_that_just_joined_is_due_one_objective_after_its_first_token(clock):
    """Nobody has decoded yet."""
    assert clock.view([decoding(5.0)]).due_s == pytest.approx(5.0 + DEFAULT_TPOT_S)


def test_the_tightest_objective_decides(clock):
    """One step serves all."""
    view = clock.view([decoding(5.0, tpot_s=2.0), decoding(5.0, tpot_s=0.5)])
    assert view.due_s == pytest.approx(5.5)


def test_after_a_step_everybody_counts_from_its_end_less_its_length(clock):
    """A step of 20 ms has to begin that much earlier."""
    clock.on_step(6.0, 6.02)
    view = clock.view([decoding(5.0)])
    assert view.step_s == pytest.approx(0.02)
    assert view.due_s == pytest.approx(6.02 + DEFAULT_TPOT_S - 0.02)


def test_who_joins_after_a_step_counts_from_its_own_first_token(clock):
    """The others' step gave it nothing."""
    clock.on_step(6.0, 6.0)
    assert clock.view([decoding(7.0)]).due_s == pytest.approx(7.0 + DEFAULT_TPOT_S)


def test_the_expected_step_follows_measured_ones_smoothly(clock):
    """One slow step does not count for all."""
    clock.on_step(0.0, 0.1)
    clock.on_step(1.0, 1.2)
    assert clock.view([decoding(0.0)]).step_s == pytest.approx(0.1 + 0.2 * 0.1)
