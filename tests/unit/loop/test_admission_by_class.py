"""A class may say for itself what becomes of a request that would come too late."""

import pytest

from sglang_flowprefill.api.classes import SloClass, SloClasses
from sglang_flowprefill.core import (
    AdmissionControl,
    Degrade,
    Fcfs,
    PrefillDecider,
    Reject,
    RoundView,
    Slo,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.loop.admission import Admission
from sglang_flowprefill.testing import MS_PER_TOKEN, make_request

CLASSES = SloClasses(
    {
        "firm": SloClass(100.0, overload="reject"),
        "soft": SloClass(100.0, overload="degrade"),
        "sacred": SloClass(100.0, overload="none"),
        "silent": SloClass(100.0),
    },
    Slo(1.0),
)
DECIDER = PrefillDecider(Fcfs(), MS_PER_TOKEN, BatchLimits(512))


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        ("firm", [Reject]),
        ("soft", [Degrade]),
        ("sacred", []),
        ("silent", [Degrade]),
        ("?", [Degrade]),
    ],
)
def test_the_class_decides_and_otherwise_the_server(class_name, expected):
    """Of requests that all need twice their objective; the server degrades."""
    request = make_request(ttft_slo_s=0.1, class_name=class_name, num_uncached_tokens=200)
    admission = Admission(AdmissionControl("degrade"), CLASSES.admission_mode)
    view = RoundView(waiting=[request])
    verdicts = admission.judge([request], view, DECIDER, 0.0)
    assert [type(verdict) for _, verdict in verdicts] == expected


def test_who_was_aborted_since_is_not_judged():
    """A request that waits no more gets no second answer."""
    request = make_request(ttft_slo_s=0.1, class_name="firm", num_uncached_tokens=200)
    admission = Admission(AdmissionControl("reject"), CLASSES.admission_mode)
    assert admission.judge([request], RoundView(), DECIDER, 0.0) == []


def test_each_of_a_burst_sees_those_before_it():
    """Ten that each fit alone: those behind the queue of the others are refused."""
    burst = [make_request(str(n), ttft_slo_s=0.35, num_uncached_tokens=100) for n in range(10)]
    admission = Admission(AdmissionControl("reject"), CLASSES.admission_mode)
    verdicts = admission.judge(burst, RoundView(waiting=burst), DECIDER, 0.0)
    assert [request.request_id for request, _ in verdicts] == [str(n) for n in range(3, 10)]
