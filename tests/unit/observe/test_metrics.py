"""What Prometheus is told, in a fresh process as SGLang makes them."""

import subprocess
import sys

import pytest

from sglang_flowprefill.core import EventKind, PredictionError, PrefillBatch, PrefillRequest, Slo
from sglang_flowprefill.observe.metrics import METRICS, Metrics

PROGRAM = """
import sys
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from sglang_flowprefill.observe.metrics import Metrics
from sglang_flowprefill.core import EventKind, PredictionError, PrefillBatch, PrefillRequest, Slo
request = PrefillRequest("r", 0.0, Slo(1.0, "chat"), 100)
other = PrefillRequest("s", 0.0, Slo(1.0, "brought along"), 100)
prefill = PrefillBatch(1, (request, other), 1.0, run_s=0.25)
metrics = Metrics(is_enabled=True, class_names=["chat", "documents"])
metrics.on_event(EventKind.ARRIVAL)
metrics.on_arrival(request)
metrics.on_not_admitted(request, "the queue is full", is_rejected=True)
metrics.on_not_admitted(request, "predicted to miss its deadline", is_rejected=False)
metrics.on_round(EventKind.ARRIVAL, 0.0003, [request, request, other])
metrics.on_preemption()
metrics.on_start(prefill)
metrics.on_resume()
metrics.on_yield(0.0042)
metrics.on_suspended(3, 4096)
metrics.on_tiles(10, 640)
metrics.on_tiles(15, 1000)
metrics.on_prefill_end("finished")
metrics.on_restart(prefill, "decode needs memory")
metrics.on_prediction(PredictionError(5, 0.1, -0.2))
metrics.on_first_token("chat", 0.4, is_attained=True)
metrics.on_completion("chat", "stop")
metrics.on_decode(7)
metrics.on_round(EventKind.COMPLETION, 0.0003, [request])
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
        env={"PROMETHEUS_MULTIPROC_DIR": str(folder), "PATH": ""},
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
        ('blocking_seconds_bucket{le="0.005"}', 1),
        ('prefills_total{outcome="finished"}', 1),
        ("prefill_batch_requests_sum", 2),
        ("prefill_batch_tokens_sum", 200),
        ("tiles_total", 15),
        ("tile_tokens_total", 1000),
        ("suspended_cursors", 3),
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


def test_without_metrics_nothing_is_made():
    """Where metrics are off, no report does anything, nor needs prometheus_client."""
    request = PrefillRequest("r", 0.0, Slo(1.0), 100)
    prefill = PrefillBatch(1, (request,), 1.0)
    metrics = Metrics(is_enabled=False, class_names=["chat"])
    metrics.on_event(EventKind.ARRIVAL)
    metrics.on_arrival(request)
    metrics.on_round(EventKind.ARRIVAL, 0.1, [request])
    metrics.on_start(prefill)
    metrics.on_restart(prefill, "decode needs memory")
    metrics.on_prediction(PredictionError(1, 0.0, 0.0))
    metrics.on_tiles(1, 1)
    metrics.on_decode(1)
    assert metrics._of == {}


def test_metrics_carry_their_unit_and_their_help():
    """Names end in what Prometheus wants for their kind; texts are sentences; none is double."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.help.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
