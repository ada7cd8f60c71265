"""Several tokenizer workers: SLOs survive whichever of them takes a request.

Arrivals travel in the same stamp, which one hook writes (``adapter/http/hooks.py``).
"""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.integration.serving import START_TIMEOUT_S, generate_body, serving, tokens

pytestmark = pytest.mark.server

NUM_REQUESTS = 24
CLASSES = "classes:\n  interactive: {ttft_slo_ms: 50000}\n  doomed: {ttft_slo_ms: 1}\n"


@pytest.fixture(scope="module", params=[2, 4])
def workers(request, tmp_path_factory):
    """A server with this many workers, and how many there are."""
    folder = tmp_path_factory.mktemp("workers")
    classes = folder / "classes.yaml"
    classes.write_text(CLASSES)
    flags = ["--tokenizer-worker-num", str(request.param)]
    flags += ["--flowprefill-slo-config", str(classes), "--flowprefill-min-ttft-slo-ms", "1"]
    with serving("flowprefill", folder, *flags) as server:
        wait_for_workers(server, request.param)
        yield server


def wait_for_workers(server, num_workers):
    """Wait until all workers take requests: the first makes a server healthy."""
    limit_s = time.monotonic() + START_TIMEOUT_S
    while server.log.read_text(errors="replace").count("Application startup") < num_workers:
        assert time.monotonic() < limit_s
        time.sleep(0.5)


def ask_each_over_a_connection_of_its_own(server, headers):
    """Send short prompts at once: the kernel deals connections out to workers."""
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        futures = [
            pool.submit(server.post, "/generate", generate_body(tokens(8, seed), 2), headers)
            for seed in range(NUM_REQUESTS)
        ]
        return [future.result() for future in futures]


def test_slos_survive_every_worker(workers):
    """Each request counts under the class that it asked for, and by its objective."""
    server = workers
    for name in ("interactive", "doomed"):
        before = server.statistics()["attainment"]
        answers = ask_each_over_a_connection_of_its_own(server, {"x-slo-class": name})
        assert {answer.status_code for answer in answers} == {200}
        after = server.wait_until_idle()["attainment"]
        count = after[name]["num_finished"] - before.get(name, {"num_finished": 0})["num_finished"]
        assert count == NUM_REQUESTS
    assert after["interactive"]["num_attained"] == NUM_REQUESTS
    assert after["doomed"]["num_attained"] == 0


def test_every_worker_refuses_a_malformed_slo_and_shows_the_state(workers):
    """Middleware and routes are there in all of them."""
    server = workers
    answers = ask_each_over_a_connection_of_its_own(server, {"x-slo-ttft-ms": "soon"})
    assert {answer.status_code for answer in answers} == {400}
    states = [httpx.get(server.url + "/flowprefill/state", timeout=60.0) for _ in range(12)]
    assert {state.status_code for state in states} == {200}
    server.require_healthy()
