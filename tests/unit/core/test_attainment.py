"""Counters, and the one definition of SLO attainment."""

import pytest

from sglang_flowprefill.core import ClassAttainment, EventKind, StatisticsRecorder
from sglang_flowprefill.core.stats import is_attained
from sglang_flowprefill.testing import make_batch, make_request


@pytest.mark.parametrize(("ttft_s", "expected"), [(0.0, True), (0.5, True), (0.5001, False)])
def test_a_first_token_exactly_on_time_counts(ttft_s, expected):
    """Attained means at or before the deadline."""
    assert is_attained(ttft_s, ttft_slo_s=0.5) is expected


def test_first_tokens_are_counted_by_class_from_arrival():
    """TTFT runs from arrival, and classes do not mix."""
    recorder = StatisticsRecorder()
    chat = make_request(arrival_s=10.0, ttft_slo_s=0.5, class_name="chat")
    batch = make_request(arrival_s=0.0, ttft_slo_s=20.0, class_name="batch")
    answers = [
        recorder.on_first_token(chat, 10.5),
        recorder.on_first_token(chat, 11.0),
        recorder.on_first_token(batch, 11.0),
    ]
    assert answers == [True, False, True]
    assert recorder.statistics().attainment == {
        "chat": ClassAttainment(num_finished=2, num_attained=1),
        "batch": ClassAttainment(num_finished=1, num_attained=1),
    }


def test_a_snapshot_does_not_change_afterwards():
    """Readers on other threads may keep it."""
    recorder = StatisticsRecorder()
    recorder.num_events[EventKind.ARRIVAL] += 1
    before = recorder.statistics()
    recorder.num_events[EventKind.ARRIVAL] += 1
    recorder.num_rounds_by_cause[EventKind.ARRIVAL] += 1
    recorder.on_first_token(make_request(), 0.1)
    assert (before.num_events, before.num_rounds, before.attainment) == (
        {EventKind.ARRIVAL: 1},
        0,
        {},
    )
    with pytest.raises(TypeError):
        before.num_events[EventKind.ABORT] = 3


def test_resumes_and_drops_add_up():
    """A first start is no resume; a drop is a restart of each member, and its time is lost."""
    recorder = StatisticsRecorder(num_failed=4)
    twice = [make_request("a"), make_request("b")]
    for run_s in (0.0, 0.25, 0.5):
        batch = make_batch(*twice, run_s=run_s)
        recorder.on_resume(batch)
        recorder.on_drop(batch)
    statistics = recorder.statistics()
    assert (statistics.num_resumes, statistics.num_dropped, statistics.num_restarts) == (2, 3, 6)
    assert (statistics.lost_s, statistics.num_failed) == (0.75, 4)
