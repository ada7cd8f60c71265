"""What Prometheus is told, in a fresh process as SGLang makes them."""

import subprocess
import sys

import pytest

from sglang_flowprefill.observe.metrics import METRICS

PROGRAM = """
import sys
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from sglang_flowprefill.core import (
    Degrade, Event, EventKind, PredictionError, PrefillBatch, PrefillRequest, Reject, RoundView,
    Slo, StartBatch,
)
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.loop.inflight import InflightTable
from sglang_flowprefill.loop.observer import Observer, Observers, Round
from sglang_flowprefill.observe.metrics import Metrics
from tests.unit.observe.cursors import Work
request = PrefillRequest("r", 0.0, Slo(1.0, "chat"), 100)
other = PrefillRequest("s", 0.0, Slo(1.0, "brought along"), 100)
table, tiles = InflightTable(), [(0, 0)]
observers = Observers([Metrics(["chat", "documents"], table.suspended, lambda: tiles[-1])])
tell = observers.tell

def tell_round(kind, *waiting):
    decision = StartBatch((request,), "first")
    view = RoundView(waiting)
    tell(Observer.on_round, Round([Event(kind, 0.0)], view, decision, 0.0, 0.0003, 0))

def open_suspended(held_bytes, run_s):
    cursor = table.open(Work((request, other), held_bytes=held_bytes), 1.0, 0.0)
    tell(Observer.on_resume, cursor, 0.0, "first")
    cursor.prefill.apply(BatchChange.RESUME, 0.0)
    cursor.prefill.apply(BatchChange.YIELD, run_s)
    tell(Observer.on_yield, cursor, run_s, "message", 0.0042)
    return cursor

tell(Observer.on_event, EventKind.ARRIVAL)
tell(Observer.on_arrival, request)
tell(Observer.on_not_admitted, request, Reject("the queue is full", 1.0))
tell(Observer.on_not_admitted, request, Degrade("predicted to miss its deadline"))
tell_round(EventKind.ARRIVAL, request, request, other)
first, second, third, fourth = [open_suspended(b, 0.25) for b in (4000, 90, 6, 5)]
tell(Observer.on_preemption, first, second, 1.0, "tighter")
tell(Observer.on_resume, first, 1.0, "first")
tiles.append((10, 640))
table.close(first)
tell(Observer.on_prefill_end, first, 2.0)
tiles.append((15, 1000))
table.close(second)
tell(Observer.on_drop, second, 2.0, "decode needs memory")
table.close(third)
tell(Observer.on_cancel, third, 2.0)
table.close(fourth)
tell(Observer.on_failure, fourth, 2.0, ValueError("x"))
open_suspended(4096, 0.1)
tell(Observer.on_prediction, PredictionError(5, 0.1, -0.2))
tell(Observer.on_first_token, request, 0.4)
tell(Observer.on_completion, request, "stop")
tell(Observer.on_decode, 0.0, 0.1, 7)
tell_round(EventKind.COMPLETION, request)
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
sys.stdout.buffer.write(generate_latest(registry))
"""


@pytest.fixture(scope="module")
def exposition(tmp_path_factory):
    """What ``/metrics`` would say after each method was called."""
    folder = tmp_path_factory.mktemp("prometheus")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PROMETHEUS_MULTIPROC_DIR": str(folder), "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(
        line.rsplit(" ", 1)
        for line in result.stdout.splitlines()
        if not line.startswith("#") and "_created" not in line
    )


@pytest.mark.parametrize(
    ("series", "value"),
    [
        ('arrivals_total{slo_class="chat"}', 1),
        ('arrivals_total{slo_class="documents"}', 0),
        ('rejected_total{reason="the queue is full",slo_class="chat"}', 1),
        ('degraded_total{reason="predicted to miss its deadline",slo_class="chat"}', 1),
        ('waiting_requests{slo_class="chat"}', 1),
        ('waiting_requests{slo_class="documents"}', 0),
        ('waiting_requests{slo_class="brought along"}', 0),
        ('first_tokens_total{attained="true",slo_class="chat"}', 1),
        ('first_tokens_total{attained="false",slo_class="chat"}', 0),
        ('ttft_seconds_bucket{le="0.5",slo_class="chat"}', 1),
        ('ttft_seconds_bucket{le="0.2",slo_class="chat"}', 0),
        ('completions_total{end="stop",slo_class="chat"}', 1),
        ('events_total{kind="arrival"}', 1),
        ('rounds_total{cause="arrival"}', 1),
        ('rounds_total{cause="timer"}', 0),
        ('round_seconds_bucket{le="0.0005"}', 2),
        ("preemptions_total", 1),
        ("resumes_total", 1),
        ('blocking_seconds_bucket{le="0.005"}', 5),
        ('prefills_total{outcome="finished"}', 1),
        ('prefills_total{outcome="dropped"}', 1),
        ('prefills_total{outcome="cancelled"}', 1),
        ('prefills_total{outcome="failed"}', 1),
        ("prefill_batch_requests_sum", 10),
        ("prefill_batch_tokens_sum", 1000),
        ("tiles_total", 15),
        ("tile_tokens_total", 1000),
        ("suspended_cursors", 1),
        ("suspended_bytes", 4096),
        ('restarts_total{reason="decode needs memory"}', 2),
        ('restarts_total{reason="nothing else can run"}', 0),
        ("lost_prefill_seconds_total", 0.25),
        ("prediction_error_ratio", 0.1),
        ("prediction_bias_ratio", -0.2),
        ("decode_steps_total", 1),
        ("decode_batch_requests_sum", 7),
    ],
)
def test_what_happens_is_counted_where_it_belongs(exposition, series, value):
    """Every report of the scheduler moves its own metric, and those known beforehand are there."""
    assert float(exposition[f"sglang_flowprefill_{series}"]) == value


def test_every_metric_is_moved_by_some_report(exposition):
    """None of the metrics is dead: each has a value other than zero after all reports."""
    moved = {name.partition("{")[0] for name, value in exposition.items() if float(value)}
    ends = ("", "_sum")
    dead = [
        metric.name
        for metric in METRICS
        if not any(f"sglang_flowprefill_{metric.name}{end}" in moved for end in ends)
    ]
    assert dead == []


def test_metrics_carry_their_unit_and_their_help():
    """Names end in what Prometheus wants for their kind; texts are sentences; none is double."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.help.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
