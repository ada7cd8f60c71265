"""What logs and traces are told when prefills make way for one another."""

import json
import logging

import pytest

from sglang_flowprefill.adapter.serving.request_traces import RequestTraces
from sglang_flowprefill.core import Degrade, PrefillRequest, Reject, Slo
from sglang_flowprefill.loop.observer import Observer, Observers
from sglang_flowprefill.observe.decision_log import DecisionLog
from sglang_flowprefill.testing import ManualClock
from tests.unit.observe.cursors import suspended_cursor

LOGGER = "sglang_flowprefill.observe.decision_log"


class Told:
    """A decision log and traces of requests, told what the loop tells, and what came of it."""

    def __init__(self, caplog, level="info", style="json", **options):
        caplog.set_level(logging.INFO, LOGGER)
        self._caplog = caplog
        self.clock = ManualClock(100.6)
        self.observers = Observers([DecisionLog(level, style, **options), RequestTraces()])

    @property
    def lines(self):
        """Every line so far."""
        return [record.getMessage() for record in self._caplog.records]

    @property
    def events(self):
        """Every JSON line so far."""
        return [json.loads(line) for line in self.lines]

    def preempt(self, long_one, short_one):
        """Put one prefill in front of another, as the loop does."""
        long_one.prefill.num_preemptions += 1
        long_one.is_preempted = True
        self.observers.tell(
            Observer.on_preemption, long_one, short_one, self.clock(), "tighter deadline"
        )

    def resume(self, cursor):
        """Let a prefill go on, as the loop does."""
        self.observers.tell(Observer.on_resume, cursor, self.clock(), "first in order")
        cursor.is_preempted = False

    def drop(self, cursor):
        """Give a prefill up."""
        self.observers.tell(Observer.on_drop, cursor, 101.0, "decode needs memory")


@pytest.fixture
def told(caplog):
    """Lines at level info, in JSON."""
    return Told(caplog)


def long_cursor(**options):
    """A document that stands suspended."""
    return suspended_cursor("long", "documents", batch_id=7, **options)


def short_cursor(**options):
    """A chat that wants to run."""
    return suspended_cursor("short", "chat", batch_id=8, **options)


def test_a_preemption_says_who_made_way_for_whom_and_why(told):
    """One line with both prefills, their progress and the reason."""
    told.preempt(long_cursor(), short_cursor())
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
        "reason": "tighter deadline",
    }


def test_only_what_was_preempted_is_said_to_resume(told):
    """A prefill that only stood still for a decode step or a round goes on without a word."""
    long_one = long_cursor()
    told.resume(long_one)
    assert told.lines == []
    told.preempt(long_one, short_cursor())
    told.clock.advance(0.4)
    told.resume(long_one)
    told.resume(long_one)
    assert [event["event"] for event in told.events] == [
        "flowprefill.preempt",
        "flowprefill.resume",
    ]
    assert told.events[1]["suspended_ms"] == pytest.approx(500.0)


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
    told.observers.tell(Observer.on_not_admitted, request, verdict)
    (line,) = told.events
    assert line["event"] == event
    assert line["reason"] == verdict.reason
    assert line.get("retry_after_ms") == retry_after_ms
    assert (line["request_id"], line["num_tokens"], line["ttft_slo_ms"]) == ("r", 500, 500.0)


def test_a_dropped_prefill_is_a_warning(told, caplog):
    """Work that is thrown away is a warning at any setting."""
    told.drop(long_cursor())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert told.events[0]["lost_ms"] == 500.0


def test_a_failed_prefill_is_a_warning_with_the_error(told, caplog):
    """An operator who looks for the cause of a 500 finds the requests and the error."""
    told.observers.tell(Observer.on_failure, long_cursor(), 101.0, ValueError("no such operator"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert told.events[0]["request_ids"] == ["long"]
    assert told.events[0]["reason"] == "no such operator"


def test_text_is_one_line_of_names_and_values(caplog):
    """A request id with spaces, quotes or line breaks stays one quoted word."""
    told = Told(caplog, style="text")
    told.preempt(suspended_cursor('a "b"\nc', "documents", batch_id=7), short_cursor())
    (line,) = told.lines
    assert line.startswith('FlowPrefill preempt: batch_id=7 request_ids="a \\"b\\"\\nc" slo_class=')
    assert "\n" not in line


def test_debug_lines_are_not_made_where_nobody_sees_them(caplog):
    """At SGLang's usual log level the default says nothing but warnings."""
    told = Told(caplog, level="debug")
    told.preempt(long_cursor(), short_cursor())
    assert told.lines == []


def test_one_rank_speaks_for_all(caplog):
    """A silent rank logs neither decisions nor warnings."""
    told = Told(caplog, is_silent=True)
    told.preempt(long_cursor(), short_cursor())
    told.drop(long_cursor())
    assert told.lines == []


def test_traced_requests_get_events_and_others_none(caplog):
    """Where SGLang traces a request its trace holds both events, logged or not."""
    told = Told(caplog, level="debug")
    long_one, untraced = long_cursor(is_traced=True), short_cursor()
    told.preempt(long_one, untraced)
    told.resume(long_one)
    (traced_req,) = long_one.work.reqs
    (first, level, facts), (second, _, _) = traced_req.time_stats.trace_ctx.events
    assert (first, second) == ("flowprefill.preempt", "flowprefill.resume")
    assert level == 1
    assert facts["flowprefill.by_request_ids"] == ["short"]
    (untraced_req,) = untraced.work.reqs
    assert untraced_req.time_stats.trace_ctx.events == []
