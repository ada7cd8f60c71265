"""Events of ours in SGLang's own traces, with OpenTelemetry's exporter into memory.

In a process of its own: tracing, once on, stays on.
"""

import json
import os
import subprocess
import sys

PROGRAM = """
import json, time
from types import SimpleNamespace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sglang.srt.observability import trace
from sglang.srt.observability.req_time_stats import RequestStage
from sglang_flowprefill.adapter.serving.request_traces import RequestTraces
from tests.unit.observe.cursors import suspended_cursor

def cursor_with(*contexts):
    cursor = suspended_cursor("a", "documents", batch_id=7)
    cursor.work.reqs = [
        SimpleNamespace(time_stats=SimpleNamespace(trace_ctx=context)) for context in contexts
    ]
    return cursor

def preempt_and_resume(cursor):
    traces, other = RequestTraces(), suspended_cursor("b", "chat", batch_id=8)
    traces.on_preemption(cursor, other, 101.0, "its turn")
    cursor.is_preempted = True
    traces.on_resume(cursor, 102.0, "its turn")

untraced = [trace.TraceNullContext(), trace.TraceReqContext("before it was on")]
preempt_and_resume(cursor_with(*untraced))

# As --enable-trace does, but for where spans go.
memory = InMemorySpanExporter()
provider = TracerProvider(id_generator=trace.TraceCustomIdGenerator())
provider.add_span_processor(SimpleSpanProcessor(memory))
trace.opentelemetry_initialized = True
trace.tracer = provider.get_tracer("test")
trace.get_cur_time_ns = time.time_ns

prefill = RequestStage.PREFILL_FORWARD
context = trace.TraceReqContext("rid", module_name="request", trace_level=1)
context.trace_req_start()
context.trace_slice_start(prefill.stage_name, prefill.level)
preempt_and_resume(cursor_with(context))
context.trace_slice_end(prefill.stage_name, prefill.level)
context.trace_req_finish()
(span,) = [span for span in memory.get_finished_spans() if span.name == prefill.stage_name]
print(json.dumps([[event.name, dict(event.attributes)] for event in span.events]))
"""


def test_events_land_in_the_span_of_the_prefill():
    """While SGLang traces a request, both events are of its prefill's span; before, of none."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    events = json.loads(result.stdout.splitlines()[-1])
    assert [name for name, _ in events] == ["flowprefill.preempt", "flowprefill.resume"]
    preempted, resumed = (attributes for _, attributes in events)
    assert preempted["flowprefill.request_ids"] == ["a"]
    assert preempted["flowprefill.by_request_ids"] == ["b"]
    assert preempted["flowprefill.reason"] == "its turn"
    assert resumed["flowprefill.batch_id"] == 7
    assert resumed["flowprefill.suspended_ms"] == 1500.0
