"""What can be seen of a running server, by whom, and that looking disturbs nothing."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor, wait

import grpc
import httpx
import msgspec
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from sglang_flowprefill.__main__ import main
from sglang_flowprefill.api.state import PAGE_PATH, STATE_PATH, ServerState
from sglang_flowprefill.observe.metrics import METRICS, PREFIX
from tests.browser import console_errors
from tests.integration.serving import REQUEST_TIMEOUT_S, generate_body, serving, tokens

pytestmark = pytest.mark.server

LONG_TOKENS = 3500
KEYS = {name: {"authorization": f"Bearer {name}"} for name in ("user-key", "admin-key", "wrong")}
NO_KEY: dict[str, str] = {}
DOCUMENT, INTERACTIVE = {"x-slo-ttft-ms": "120000"}, {"x-slo-ttft-ms": "10000"}


def state_of(server, **headers):
    """Ask for the state and read it as a watcher does."""
    answer = httpx.get(server.url + STATE_PATH, headers=headers, timeout=REQUEST_TIMEOUT_S)
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=ServerState)


def wait_for(condition, timeout_s=60.0):
    """Ask until it holds; return what it returned."""
    limit_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < limit_s
        time.sleep(0.02)
    return found


def preempt_once(server, watch, seed, *, user=NO_KEY, watcher=NO_KEY):
    """Let a short prompt overtake a long one; return what ``watch`` returned in between."""
    with ThreadPoolExecutor(2) as pool:
        long_one = pool.submit(
            server.post, "/generate", generate_body(tokens(LONG_TOKENS, seed)), DOCUMENT | user
        )
        wait_for(lambda: state_of(server, **watcher).prefills)
        short_one = pool.submit(
            server.post, "/generate", generate_body(tokens(32, seed + 1), 8), INTERACTIVE | user
        )
        seen = watch()
        done, _ = wait([long_one, short_one])
        assert [future.result().status_code for future in done] == [200, 200]
    return seen


def test_a_running_prefill_is_seen_without_a_round_or_a_stop(server):
    """A hundred questions during a long prefill cause no event, no round and no suspension."""
    server.wait_until_idle()
    with ThreadPoolExecutor(1) as pool:
        body = generate_body(tokens(LONG_TOKENS, 7001))
        future = pool.submit(server.post, "/generate", body, DOCUMENT)
        before = wait_for(lambda: (s := state_of(server)).prefills and s)
        states = [state_of(server) for _ in range(100)]
        during = [s for s in states if [p.state for p in s.prefills] == ["running"]]
        assert future.result().status_code == 200
    assert len(during) > 20, "the prefill should last longer than that"
    assert {s.num_rounds for s in during} == {before.num_rounds}
    assert {sum(s.num_events.values()) for s in during} == {sum(before.num_events.values())}
    progress = [s.prefills[0].run_s for s in during]
    assert progress == sorted(progress)
    assert progress[-1] > progress[0]
    server.require_healthy()


def test_a_preemption_is_seen_by_every_watcher(server):
    """The state counts it, its slices are history, and statistics say the same."""
    before = state_of(server)
    seen = preempt_once(
        server,
        lambda: wait_for(
            lambda: (s := state_of(server)).num_preemptions > before.num_preemptions and s
        ),
        seed=7100,
    )
    assert any(ran.end == "yield" for ran in seen.slices)
    statistics = server.wait_until_idle()
    after = state_of(server)
    assert after.num_preemptions == statistics["num_preemptions"]
    assert after.num_resumes == statistics["num_resumes"] > before.num_resumes
    assert after.blocking.num_yields > 0
    assert after.prefills == []


def test_every_documented_metric_is_served_with_its_help(server):
    """``/metrics`` of a running server holds each metric of the reference, and no other of ours."""
    text = httpx.get(server.url + "/metrics", timeout=REQUEST_TIMEOUT_S).text
    served = {
        line.split(" ", 3)[2]: line.split(" ", 3)[3]
        for line in text.splitlines()
        if line.startswith(f"# HELP {PREFIX}")
    }
    assert served == {PREFIX + metric.name: metric.help for metric in METRICS}


def test_counts_agree_between_metrics_and_state(server):
    """What Prometheus scrapes is what the state says."""
    server.generate(tokens(40, 7200), 3)
    server.wait_until_idle()
    state = state_of(server)
    text = httpx.get(server.url + "/metrics", timeout=REQUEST_TIMEOUT_S).text

    def total(name):
        lines = [line for line in text.splitlines() if line.startswith(PREFIX + name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    assert total("preemptions_total") == state.num_preemptions
    assert total("resumes_total") == state.num_resumes
    assert total("decode_steps_total") == state.num_decode_steps
    assert total("arrivals_total") == sum(entry.num_arrived for entry in state.classes)
    assert total("first_tokens_total") == sum(entry.num_finished for entry in state.classes)
    assert total("completions_total") > 0
    assert total("suspended_cursors") == total("suspended_bytes") == 0


def test_the_page_follows_a_real_server(server, browser):
    """In Chromium the page of a real server shows a prefill that runs, without an error."""
    browser.get(server.url + PAGE_PATH)
    wait_for(lambda: "policy" in browser.find_element("id", "server").text)

    def sees_a_prefill():
        return "interactive" in browser.find_element("id", "classes").text and (
            "of" in browser.find_element("id", "prefills").text
        )

    with ThreadPoolExecutor(1) as pool:
        body = generate_body(tokens(LONG_TOKENS, 7300))
        future = pool.submit(server.post, "/generate", body, {"x-slo-class": "document"})
        wait_for(sees_a_prefill)
        assert future.result().status_code == 200
    assert browser.find_element("id", "problem").text == ""
    assert console_errors(browser) == []
    browser.get("about:blank")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OpenTelemetry collector that remembers spans."""

    def __init__(self):
        self.spans = []

    def Export(self, request, context):  # noqa: N802 (its name in the protocol)
        """Take spans."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def events(self):
        """Names of our events, each with the name of its span."""
        return [
            (span.name, event.name)
            for span in list(self.spans)
            for event in span.events
            if event.name.startswith("flowprefill.")
        ]


@pytest.fixture(scope="module")
def collector():
    """A collector that listens."""
    with ThreadPoolExecutor(2) as pool:
        service = grpc.server(pool)
        collecting = Collector()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collecting, service)
        collecting.port = service.add_insecure_port("127.0.0.1:0")
        service.start()
        yield collecting
        service.stop(None).wait()


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory, collector):
    """A server with both keys, traces, and a log of decisions as JSON."""
    flags = ["--api-key", "user-key", "--admin-api-key", "admin-key"]
    flags += ["--enable-trace", "--otlp-traces-endpoint", f"127.0.0.1:{collector.port}"]
    flags += ["--flowprefill-log-level", "info", "--flowprefill-log-format", "json"]
    with serving("flowprefill", tmp_path_factory.mktemp("guarded"), *flags) as running:
        yield running


def test_only_the_admin_key_opens_the_state(guarded_server):
    """State wants the admin key, as other admin routes; the page says nothing and wants none."""

    def status(path, **headers):
        return httpx.get(guarded_server.url + path, headers=headers).status_code

    assert status(STATE_PATH) == 401
    assert status(STATE_PATH, **KEYS["wrong"]) == 401
    assert status(STATE_PATH, **KEYS["user-key"]) == 401
    assert status(STATE_PATH, **KEYS["admin-key"]) == 200
    assert status(PAGE_PATH) == 200
    assert status(f"{PAGE_PATH}/other") == 401
    assert status("/server_info") == 401
    page = httpx.get(guarded_server.url + PAGE_PATH)
    assert "connect-src 'self'" in page.headers["content-security-policy"]


def test_the_page_and_top_ask_with_a_key(guarded_server, browser, capsys):
    """With the key entered the page shows the server; ``top`` prints it."""
    browser.get(guarded_server.url + PAGE_PATH)
    wait_for(lambda: "wants an API key" in browser.find_element("id", "problem").text)
    field = browser.find_element("id", "key")
    field.send_keys("admin-key")
    field.submit()
    wait_for(lambda: "policy s-edf" in browser.find_element("id", "server").text)
    browser.get("about:blank")
    command = ["top", "--once", "--url", guarded_server.url, "--api-key"]
    assert main([*command, "admin-key"]) == 0
    assert "policy s-edf, by operator" in capsys.readouterr().out
    assert main([*command, "wrong"]) == 1


def test_a_preemption_is_logged_and_traced(guarded_server, collector):
    """One line and one event for the preemption and for the resumption after it."""

    def lines():
        text = guarded_server.log.read_text(errors="replace")
        found = [line.partition("{")[2] for line in text.splitlines() if '"flowprefill.' in line]
        return [json.loads("{" + line) for line in found]

    preempt_once(
        guarded_server,
        lambda: wait_for(lambda: state_of(guarded_server, **KEYS["admin-key"]).num_preemptions),
        seed=7400,
        user=KEYS["user-key"],
        watcher=KEYS["admin-key"],
    )
    by_event = {line["event"]: line for line in wait_for(lambda: len(lines()) >= 2 and lines())}
    preempt, resume = by_event["flowprefill.preempt"], by_event["flowprefill.resume"]
    assert preempt["request_ids"] == resume["request_ids"]
    assert preempt["by_batch_id"] > preempt["batch_id"] == resume["batch_id"]
    wait_for(lambda: len(collector.events) >= 2)
    assert set(collector.events) == {
        ("prefill_forward", "flowprefill.preempt"),
        ("prefill_forward", "flowprefill.resume"),
    }


def test_a_stuck_scheduler_is_told_from_a_busy_one(guarded_server):
    """A scheduler that does not run is answered for with 503 in seconds, and comes back."""
    (scheduler,) = [
        process
        for process in psutil.Process(guarded_server.process.pid).children(recursive=True)
        if "scheduler" in " ".join(process.cmdline())
    ]
    os.kill(scheduler.pid, signal.SIGSTOP)
    try:
        answer = httpx.get(
            guarded_server.url + STATE_PATH, headers=KEYS["admin-key"], timeout=REQUEST_TIMEOUT_S
        )
    finally:
        os.kill(scheduler.pid, signal.SIGCONT)
    assert answer.status_code == 503
    assert "has not answered" in answer.json()["error"]
    state_of(guarded_server, **KEYS["admin-key"])
