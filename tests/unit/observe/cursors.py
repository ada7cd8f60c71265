"""Prefills in flight without an engine, for tests of what watches them."""

from dataclasses import dataclass, field
from types import SimpleNamespace

from sglang_flowprefill.core import PrefillRequest, Slo
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.loop.inflight import InflightTable


@dataclass
class Work:
    """What an engine would keep of one prefill."""

    requests: tuple
    reqs: list = field(default_factory=list)
    num_kv_tokens: int = 0
    held_bytes: int = 1000
    num_boundaries: int = 17


class FakeTrace:
    """Stands for SGLang's trace of one request."""

    def __init__(self, *, is_on):
        self.tracing_enable = is_on
        self.events = []

    def trace_event(self, name, level, ts=None, attrs=None):
        """Note an event."""
        assert self.tracing_enable
        self.events.append((name, level, attrs))


def make_request(name, *, arrival_s=100.0, tokens=100, class_name="chat", ttft_slo_s=1.0):
    """One request that arrived at second 100."""
    return PrefillRequest(name, arrival_s, Slo(ttft_slo_s, class_name), tokens)


def open_cursor(table, *requests, predicted_s=2.0, is_traced=False):
    """Enter a prefill that has not run."""
    reqs = [
        SimpleNamespace(time_stats=SimpleNamespace(trace_ctx=FakeTrace(is_on=is_traced)))
        for _ in requests
    ]
    return table.open(Work(requests, reqs), predicted_s, 0.0)


def suspended_cursor(name, class_name, *, batch_id=0, is_traced=False):
    """A prefill of one request that has run for half a second and stands suspended."""
    table = InflightTable()
    table._next_batch_id = batch_id
    request = make_request(name, class_name=class_name, tokens=500, ttft_slo_s=2.0)
    cursor = open_cursor(table, request, predicted_s=1.5, is_traced=is_traced)
    cursor.prefill.apply(BatchChange.RESUME, 100.0)
    cursor.prefill.apply(BatchChange.YIELD, 100.5)
    return cursor
