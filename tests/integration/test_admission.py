"""Requests that come too late anyway are refused at the door, with a status that clients know."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.serving import generate_body, serving, tokens

pytestmark = pytest.mark.server

URGENT = {"x-slo-ttft-ms": "20000"}
PATIENT = {"x-slo-ttft-ms": "600000"}
IMPOSSIBLE = {"x-slo-ttft-ms": "1"}
TEXT = "word " * 20
BODIES = {
    "/generate": generate_body(tokens(20, seed=5)),
    "/v1/completions": {"model": "default", "prompt": TEXT, "max_tokens": 1},
    "/v1/chat/completions": {
        "model": "default",
        "messages": [{"role": "user", "content": TEXT}],
        "max_tokens": 1,
    },
}


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory):
    """A server that refuses what would be late, and lets one request wait."""
    flags = ["--flowprefill-admission", "reject", "--flowprefill-max-waiting", "1"]
    with serving("flowprefill", tmp_path_factory.mktemp("admission"), *flags) as running:
        yield running


def wait_for(condition):
    """Ask until it holds."""
    limit_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < limit_s
        time.sleep(0.01)


@pytest.fixture
def full_queue(strict_server):
    """One prompt in its prefill and one that waits behind it, both patient."""
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(
            strict_server.post, "/generate", generate_body(tokens(3500, seed=1)), PATIENT
        )
        wait_for(lambda: strict_server.statistics()["num_unfinished_prefills"] == 1)
        events = strict_server.statistics()["num_events"]["arrival"]
        waiting = pool.submit(
            strict_server.post, "/generate", generate_body(tokens(3000, seed=2)), PATIENT
        )
        wait_for(lambda: strict_server.statistics()["num_events"]["arrival"] > events)
        yield running
        assert running.result().status_code == waiting.result().status_code == 200


def test_a_full_queue_answers_429_with_the_time_to_try_again(strict_server, full_queue):
    """On every route, streaming or not; what was admitted before is served."""
    for path, body in BODIES.items():
        for stream in (False, True):
            answer = strict_server.post(path, body | {"stream": stream}, URGENT)
            assert answer.status_code == 429, (path, stream, answer.text)
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "OverloadedError"
    assert not full_queue.done(), "the queue should have been full all the time"


@pytest.mark.parametrize("path", BODIES)
def test_an_objective_that_no_idle_server_could_meet_answers_400(strict_server, path):
    """Trying again would not help; the message says what was asked for."""
    answer = strict_server.post(path, BODIES[path], IMPOSSIBLE)
    assert answer.status_code == 400
    assert "TTFT objective is 1 ms" in answer.json()["error"]["message"]
    assert "retry-after" not in answer.headers


def test_refused_requests_leave_nothing_behind(strict_server):
    """The server is idle afterwards, its leak checks are content, and it serves on."""
    strict_server.post("/generate", BODIES["/generate"], IMPOSSIBLE)
    statistics = strict_server.wait_until_idle()
    assert statistics["num_rejected"] > 0
    assert strict_server.post("/generate", BODIES["/generate"], URGENT).status_code == 200
    strict_server.require_healthy()
