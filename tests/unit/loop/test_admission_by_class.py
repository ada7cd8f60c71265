"""A class may say for itself what becomes of a request that would come too late."""

import pytest

from sglang_flowprefill.api.classes import SloClass, SloClasses
from sglang_flowprefill.core import (
    AdmissionControl,
    Admit,
    Degrade,
    Fcfs,
    PrefillDecider,
    Reject,
    RoundView,
    Slo,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.loop.admission import AdmissionByClass
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
SCHEDULER = PrefillDecider(Fcfs(), MS_PER_TOKEN, BatchLimits(512))


@pytest.mark.parametrize(
    ("class_name", "verdict"),
    [("firm", Reject), ("soft", Degrade), ("sacred", Admit), ("silent", Degrade), ("?", Degrade)],
)
def test_the_class_decides_and_otherwise_the_server(class_name, verdict):
    """Of requests that all need twice their objective; the server degrades."""
    request = make_request(ttft_slo_s=0.1, class_name=class_name, num_uncached_tokens=200)
    admission = AdmissionByClass(AdmissionControl("degrade"), CLASSES)
    assert isinstance(admission.decide(request, SCHEDULER, RoundView(), 0.0), verdict)
