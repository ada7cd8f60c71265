"""What a user of the server relies on: urgent requests first, nobody lost, clear errors."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest

from tests.integration.serving import REQUEST_TIMEOUT_S, generate_body, tokens

pytestmark = pytest.mark.server

LONG_PROMPT_TOKENS = 3500
NUM_MIXED_REQUESTS = 200


@pytest.fixture
def long_prefill(server):
    """A long prompt that is being prefilled while the test runs."""
    body = generate_body(tokens(LONG_PROMPT_TOKENS, seed=time.time_ns() % 2**31))
    before = server.statistics()["num_rounds"]
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server.post, "/generate", body, {"x-slo-class": "document"})
        while server.statistics()["num_unfinished_prefills"] == 0:
            assert not future.done()
        assert server.statistics()["num_rounds"] > before
        yield future


def test_urgent_prompt_overtakes_a_long_prefill(server, long_prefill):
    """A short prompt gets its first token while the long prefill is still unfinished."""
    before = server.statistics()
    answer = server.post("/generate", generate_body(tokens(32, 1)), {"x-slo-class": "interactive"})
    assert answer.status_code == 200
    assert not long_prefill.done(), "the long prompt should still be in its prefill"
    assert server.statistics()["num_preemptions"] > before["num_preemptions"]
    assert long_prefill.result().status_code == 200
    server.require_healthy()


def test_streams_deliver_one_event_per_token(server):
    """A streaming request delivers one event per token and then ends."""
    body = generate_body(tokens(50, 2), 5, stream=True)
    with httpx.stream("POST", server.url + "/generate", json=body, timeout=60.0) as response:
        events = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    last = json.loads(events[-2].removeprefix("data: "))
    assert last["meta_info"]["completion_tokens"] == 5


def test_decode_goes_on_during_a_long_prefill(server):
    """A request that is already decoding gets tokens while a long prompt is being prefilled.

    The stream is longer than the prefill: a server that decoded it to its end first would not
    have answered the long prompt before.
    """
    token_times_s, is_over = [], threading.Event()

    def decode():
        body = generate_body(tokens(20, 3), 2000, stream=True)
        with httpx.stream("POST", server.url + "/generate", json=body, timeout=120.0) as response:
            for _line in response.iter_lines():
                token_times_s.append(time.monotonic())
                if is_over.is_set():
                    return  # the client leaves, which aborts the rest

    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(decode)
        while not token_times_s:
            time.sleep(0.01)
        body = generate_body(tokens(LONG_PROMPT_TOKENS, 4))
        long_one = pool.submit(server.post, "/generate", body, {"x-slo-class": "document"})
        while server.statistics()["num_unfinished_prefills"] == 0:
            assert not long_one.done()
        started_s = time.monotonic()
        assert long_one.result().status_code == 200
        ended_s = time.monotonic()
        assert not stream.done(), "the stream should outlast the prefill"
        is_over.set()
    num_beside = sum(started_s < time_s < ended_s for time_s in token_times_s)
    assert num_beside >= 3
    server.wait_until_idle()


def test_abort_while_suspended_frees_everything_at_once(server, long_prefill):
    """Aborting a prefill ends it early, and its memory can be used again."""
    before = server.statistics()["num_cancelled"]
    server.post("/abort_request", {"rid": "", "abort_all": True})
    answer = long_prefill.result()
    assert answer.status_code == 200
    assert answer.json()["meta_info"]["finish_reason"]["type"] == "abort"
    assert server.wait_until_idle()["num_cancelled"] == before + 1
    server.require_healthy()
    assert server.generate(tokens(64, 5), 4)["meta_info"]["completion_tokens"] == 4


def test_health_is_answered_during_a_pause(server):
    """A paused server is alive: whoever paused it does not want it restarted."""
    server.post("/pause_generation", {"mode": "in_place"})
    try:
        assert httpx.get(server.url + "/health_generate", timeout=10.0).status_code == 200
    finally:
        server.post("/continue_generation", {})


def test_a_session_opens_beside_a_suspended_prefill(server, long_prefill):
    """Any client may open a session, read a weight or trace: nobody waits for that."""
    opened = server.post("/open_session", {"capacity_of_str_len": 1000})
    server.post("/close_session", {"session_id": opened.json()})
    weights = server.post("/get_weights_by_name", {"name": "lm_head.weight", "truncate_size": 1})
    assert (opened.status_code, weights.status_code) == (200, 200)
    assert not long_prefill.done(), "a side call should not wait for the prefill"


def test_two_hundred_mixed_requests_are_all_answered_once(server):
    """Prompts of all sizes, streamed or not, with and without SLO: each gets its tokens."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(8 + rng.pareto(1.2, NUM_MIXED_REQUESTS) * 20, 1500).astype(int)

    def ask(index):
        body = generate_body(tokens(int(lengths[index]), 1000 + index), 1 + index % 4)
        headers = [{}, {"x-slo-ttft-ms": "300"}, {"x-slo-class": "document"}][index % 3]
        answer = server.post("/generate", body, headers)
        return answer.status_code, len(answer.json()["output_ids"])

    before = server.wait_until_idle()
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(NUM_MIXED_REQUESTS)))
    assert answers == [(200, 1 + index % 4) for index in range(NUM_MIXED_REQUESTS)]
    after = server.wait_until_idle()
    finished = sum(c["num_finished"] for c in after["attainment"].values())
    finished -= sum(c["num_finished"] for c in before["attainment"].values())
    assert finished == NUM_MIXED_REQUESTS
    assert after["num_rounds"] <= sum(after["num_events"].values())
    server.require_healthy()


CLIENT = """
import sys, urllib.request
body = sys.argv[2].encode()
request = urllib.request.Request(sys.argv[1], body, {"content-type": "application/json"})
print("sending", flush=True)
urllib.request.urlopen(request, timeout=300).read()
"""


def test_killed_clients_leak_nothing(server):
    """Clients killed in the middle of their requests, over and over, leave the server clean."""
    num_clients, at_once = 200, 20
    for first in range(0, num_clients, at_once):
        clients = []
        for index in range(first, first + at_once):
            body = json.dumps(generate_body(tokens(100 + 40 * (index % 30), 5000 + index), 20))
            command = [sys.executable, "-S", "-c", CLIENT, server.url + "/generate", body]
            clients.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for client in clients:
            client.stdout.readline()
        time.sleep(0.05 * (first // at_once % 4))
        for client in clients:
            client.kill()
            client.wait()
            client.stdout.close()
    server.wait_until_idle(120.0)
    server.require_healthy()
    assert server.generate(tokens(64, 6), 4)["meta_info"]["completion_tokens"] == 4


def test_control_messages_find_no_suspended_prefill(server, long_prefill):
    """Flushing the cache refuses while a prefill is under way and works once it is done."""
    assert server.post("/flush_cache", {}).status_code != 200
    assert long_prefill.result().status_code == 200
    server.wait_until_idle()
    assert server.post("/flush_cache", {}).status_code == 200
    server.require_healthy()


def test_messages_that_need_a_quiet_engine_get_one(server, long_prefill):
    """New weights, here of a folder that does not exist, come after every started prefill."""
    assert server.post("/update_weights_from_disk", {"model_path": "/nowhere"}).status_code == 400
    assert server.statistics()["num_unfinished_prefills"] == 0
    assert long_prefill.result().status_code == 200


def test_load_reports_count_suspended_requests_as_running(server, long_prefill):
    """A router that asks for the load sees the request whose prefill stands suspended."""
    server.post("/generate", generate_body(tokens(32, 9)), {"x-slo-class": "interactive"})
    loads = httpx.get(server.url + "/v1/loads", timeout=REQUEST_TIMEOUT_S).json()["loads"]
    assert not long_prefill.done()
    assert sum(load["num_running_reqs"] for load in loads) >= 1


def test_pause_in_place_keeps_a_suspended_prefill(server, long_prefill):
    """A prefill paused in place goes on after the pause and is answered."""
    assert server.post("/pause_generation", {"mode": "in_place"}).status_code == 200
    time.sleep(0.3)
    assert not long_prefill.done()
    assert server.post("/continue_generation", {}).status_code == 200
    assert long_prefill.result().status_code == 200
    server.wait_until_idle()
    server.require_healthy()


BAD_SLOS = [0.5, -5, "250", "fast", 1e12, True, [250], {"ms": 250}]


@pytest.mark.parametrize("route", ["/generate", "/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("value", BAD_SLOS, ids=str)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_bad_slo_in_the_body_is_http_400(server, route, value, stream):
    """Every route answers a malformed SLO with status 400 and names the field."""
    params = {"ttft_slo_ms": value}
    bodies = {
        "/generate": generate_body([5, 6], custom_params=params),
        "/v1/completions": {"prompt": "a", "max_tokens": 1, "custom_params": params},
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 1,
            "custom_params": params,
        },
    }
    before = server.statistics()["num_events"].get("arrival", 0)
    answer = server.post(route, {"model": "default", "stream": stream, **bodies[route]})
    assert answer.status_code == 400, answer.text
    assert "ttft_slo_ms" in answer.json()["error"]["message"]
    assert server.statistics()["num_events"].get("arrival", 0) == before


@pytest.mark.parametrize(
    "headers",
    [
        [("x-slo-ttft-ms", "0.5")],
        [("x-slo-ttft-ms", "nan")],
        [("x-slo-ttft-ms", "soon")],
        [("x-slo-class", "no such class")],
        [("x-slo-ttft-ms", "100"), ("x-slo-ttft-ms", "100")],
    ],
    ids=str,
)
def test_bad_slo_headers_are_http_400(server, headers):
    """Malformed, unknown or repeated SLO headers are refused."""
    body = generate_body([5, 6])
    url = server.url + "/generate"
    answer = httpx.post(url, json=body, headers=headers, timeout=REQUEST_TIMEOUT_S)
    assert answer.status_code == 400, answer.text


def test_slo_classes_are_counted_under_their_name(server):
    """A request with a class header is reported under that class, in statistics and metrics."""
    before = server.statistics()["attainment"].get("interactive", {"num_finished": 0})
    server.post(
        "/v1/completions",
        {"model": "m", "prompt": "Hi", "max_tokens": 1},
        {"x-slo-class": "interactive"},
    )
    after = server.statistics()["attainment"]["interactive"]
    assert after["num_finished"] == before["num_finished"] + 1
    metrics = httpx.get(server.url + "/metrics", timeout=REQUEST_TIMEOUT_S).text
    assert 'sglang_flowprefill_first_tokens_total{attained="' in metrics
    assert "sglang_flowprefill_rounds_total" in metrics
    assert "sglang_flowprefill_blocking_seconds_bucket" in metrics


def test_constrained_generation_works(server):
    """A request that waits for its grammar is served like any other."""
    body = generate_body(tokens(20, 8), 16)
    body["sampling_params"] |= {"regex": "[0-9]{4}", "ignore_eos": False}
    answer = server.post("/generate", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"].strip().isdigit()


def test_idle_scheduler_uses_no_cpu(server):
    """With nothing to do the scheduler process sleeps."""
    server.wait_until_idle()
    schedulers = [
        process
        for process in psutil.Process(server.process.pid).children(recursive=True)
        if "scheduler" in " ".join(process.cmdline())
    ]
    assert len(schedulers) == 1

    def cpu_s():
        times = schedulers[0].cpu_times()
        return times.user + times.system

    before_s = cpu_s()
    time.sleep(3.0)
    assert cpu_s() - before_s < 0.3
