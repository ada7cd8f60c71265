"""Events of ours in SGLang's own traces, with OpenTelemetry's exporter into memory.

In a process of its own: tracing, once on, stays on.
"""

import json
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
from sglang_flowprefill.adapter.serving import request_traces

def request_with(context):
    return SimpleNamespace(time_stats=SimpleNamespace(trace_ctx=context))

untraced = [trace.TraceNullContext(), trace.TraceReqContext("before it was on")]
num_traced = len(request_traces.traced(map(request_with, untraced)))

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
reqs = request_traces.traced([request_with(context)])
facts = {"batch_id": 7, "request_ids": ["a", "b"], "suspended_ms": 12.5, "reason": "its turn"}
request_traces.add_event(reqs, "preempt", facts)
request_traces.add_event(reqs, "resume", facts)
context.trace_slice_end(prefill.stage_name, prefill.level)
context.trace_req_finish()
(span,) = [span for span in memory.get_finished_spans() if span.name == prefill.stage_name]
print(json.dumps([num_traced, [[event.name, dict(event.attributes)] for event in span.events]]))
"""


def test_events_land_in_the_span_of_the_prefill():
    """While SGLang traces a request, both events are of its prefill's span; before, of none."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    num_traced, events = json.loads(result.stdout.splitlines()[-1])
    assert num_traced == 0
    assert [name for name, _ in events] == ["flowprefill.preempt", "flowprefill.resume"]
    assert events[0][1] == {
        "flowprefill.batch_id": 7,
        "flowprefill.request_ids": ["a", "b"],
        "flowprefill.suspended_ms": 12.5,
        "flowprefill.reason": "its turn",
    }
