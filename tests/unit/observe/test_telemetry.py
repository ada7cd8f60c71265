"""What logs and traces are told when prefills make way for one another."""

import json
import logging
from types import SimpleNamespace

import pytest

from sglang_flowprefill.core import Degrade, PrefillBatch, PrefillRequest, Reject, Slo
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.observe.decision_log import DecisionLog
from sglang_flowprefill.observe.live_state import LiveState
from sglang_flowprefill.observe.metrics import Metrics
from sglang_flowprefill.observe.telemetry import Telemetry
from sglang_flowprefill.testing import ManualClock

LOGGER = "sglang_flowprefill.observe.decision_log"


class FakeTrace:
    """Stands for SGLang's trace of one request."""

    def __init__(self, *, is_on):
        self.tracing_enable = is_on
        self.events = []

    def trace_event(self, name, level, ts=None, attrs=None):
        """Note an event."""
        assert self.tracing_enable
        self.events.append((name, level, attrs))


def cursor(batch_id, name, class_name, *, is_traced=False):
    """A prefill of one request that has run for half a second."""
    request = PrefillRequest(name, 100.0, Slo(2.0, class_name), 500)
    prefill = PrefillBatch(batch_id, (request,), predicted_s=1.5)
    prefill.apply(BatchChange.RESUME, 100.0)
    prefill.apply(BatchChange.YIELD, 100.5)
    req = SimpleNamespace(time_stats=SimpleNamespace(trace_ctx=FakeTrace(is_on=is_traced)))
    return SimpleNamespace(
        prefill=prefill, reqs=[req], started_as=(request,), execution=None, trace=req.time_stats
    )


class Told:
    """A ``Telemetry`` and what it has told."""

    def __init__(self, caplog, level="info", style="json", **options):
        caplog.set_level(logging.INFO, LOGGER)
        self._caplog = caplog
        self.clock = ManualClock(100.6)
        live = LiveState("s-edf", "operator", {}, self.clock)
        metrics = Metrics(is_enabled=False, class_names=[])
        self.telemetry = Telemetry(metrics, live, DecisionLog(level, style, **options), None)

    @property
    def lines(self):
        """Every line so far."""
        return [record.getMessage() for record in self._caplog.records]

    @property
    def events(self):
        """Every JSON line so far."""
        return [json.loads(line) for line in self.lines]

    def preempt(self, long_one, short_one):
        """Put one prefill in front of another."""
        self.telemetry.on_preemption(long_one, short_one, self.clock(), reason="tighter")

    def resume(self, cursor):
        """Let a prefill go on."""
        self.telemetry.on_resume(cursor, self.clock(), reason="first in order")


@pytest.fixture
def told(caplog):
    """Lines at level info, in JSON."""
    return Told(caplog)


def test_a_preemption_says_who_made_way_for_whom_and_why(told):
    """One line with both prefills, their progress and the reason."""
    told.preempt(cursor(7, "long", "documents"), cursor(8, "short", "chat"))
    (event,) = told.events
    assert event.pop("timestamp")[:2] == "20"
    assert event == {
        "event": "flowprefill.preempt",
        "batch_id": 7,
        "request_ids": ["long"],
        "slo_class": "documents",
        "run_ms": 500.0,
        "remaining_ms": 1000.0,
        "slack_ms": 1400.0,
        "num_preemptions": 1,
        "by_batch_id": 8,
        "by_request_ids": ["short"],
        "by_slo_class": "chat",
        "reason": "tighter",
    }


def test_only_what_was_preempted_is_said_to_resume(told):
    """A prefill that only stood still for a decode step or a round goes on without a word."""
    long_one = cursor(7, "long", "documents")
    told.resume(long_one)
    assert told.lines == []
    told.preempt(long_one, cursor(8, "short", "chat"))
    told.clock.advance(0.4)
    told.resume(long_one)
    told.resume(long_one)
    assert [event["event"] for event in told.events] == [
        "flowprefill.preempt",
        "flowprefill.resume",
    ]
    assert told.events[1]["suspended_ms"] == pytest.approx(500.0)
    assert told.telemetry.describe()["num_resumes"] == 3


@pytest.mark.parametrize(
    ("verdict", "event", "retry_after_ms"),
    [
        (Reject("the queue is full", 1.25), "flowprefill.refuse", 1250.0),
        (Reject("too long", float("inf")), "flowprefill.refuse", None),
        (Degrade("predicted to miss its deadline"), "flowprefill.degrade", None),
    ],
)
def test_a_request_that_is_not_admitted_has_its_line(told, verdict, event, retry_after_ms):
    """Refusals and degradations say of whom and why, refusals when to try again."""
    request = PrefillRequest("r", 100.0, Slo(0.5, "chat"), 500)
    told.telemetry.on_not_admitted(request, verdict)
    (line,) = told.events
    assert line["event"] == event
    assert line["reason"] == verdict.reason
    assert line.get("retry_after_ms") == retry_after_ms
    assert (line["request_id"], line["num_tokens"], line["ttft_slo_ms"]) == ("r", 500, 500.0)


def test_a_dropped_prefill_is_a_warning(told, caplog):
    """Work that is thrown away is a warning at any setting."""
    told.telemetry.on_restart(cursor(7, "long", "documents"), 101.0, reason="decode needs memory")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert told.events[0]["lost_ms"] == 500.0


def test_text_is_one_line_of_names_and_values(caplog):
    """A request id with spaces, quotes or line breaks stays one quoted word."""
    told = Told(caplog, style="text")
    told.preempt(cursor(7, 'a "b"\nc', "documents"), cursor(8, "short", "chat"))
    (line,) = told.lines
    assert line.startswith('FlowPrefill preempt: batch_id=7 request_ids="a \\"b\\"\\nc" slo_class=')
    assert "\n" not in line


def test_debug_lines_are_not_made_where_nobody_sees_them(caplog):
    """At SGLang's usual log level the default says nothing but warnings."""
    told = Told(caplog, level="debug")
    told.preempt(cursor(7, "long", "documents"), cursor(8, "short", "chat"))
    assert told.lines == []
    assert told.telemetry.describe()["num_preemptions"] == 1


def test_one_rank_speaks_for_all(caplog):
    """A silent rank logs neither decisions nor warnings."""
    told = Told(caplog, is_silent=True)
    told.preempt(cursor(7, "long", "documents"), cursor(8, "short", "chat"))
    told.telemetry.on_restart(cursor(9, "x", "chat"), 101.0, reason="decode needs memory")
    assert told.lines == []


def test_traced_requests_get_events_and_others_none(caplog):
    """Where SGLang traces a request its trace holds both events, logged or not."""
    told = Told(caplog, level="debug")
    long_one = cursor(7, "long", "documents", is_traced=True)
    untraced = cursor(8, "short", "chat")
    told.preempt(long_one, untraced)
    told.resume(long_one)
    (first, level, facts), (second, _, _) = long_one.trace.trace_ctx.events
    assert (first, second) == ("flowprefill.preempt", "flowprefill.resume")
    assert level == 1
    assert facts["flowprefill.by_request_ids"] == ["short"]
    assert untraced.trace.trace_ctx.events == []
