"""Two replicas behind one port: each with a loop, a queue and statistics of its own."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.integration.serving import REQUEST_TIMEOUT_S, generate_body, serving, tokens

pytestmark = pytest.mark.server

NUM_REQUESTS = 12


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """A server with two replicas on one core each."""
    folder = tmp_path_factory.mktemp("replicas")
    with serving("flowprefill", folder, "--dp-size", "2") as server:
        yield server


def states_of(server):
    """Return the statistics of every replica."""
    info = httpx.get(server.url + "/server_info", timeout=REQUEST_TIMEOUT_S).json()
    return [state["flowprefill"] for state in info["internal_states"]]


def test_both_replicas_serve_and_count_their_own(replicas):
    """Answers are those of one server; objectives and arrivals reach the replica that serves."""
    before = [state["num_prefills"] for state in states_of(replicas)]
    assert len(before) == 2

    def ask(index):
        body = generate_body(tokens(60, 40 + index % 2), 4)
        answer = replicas.post("/generate", body, {"x-slo-ttft-ms": "60000"})
        return answer.status_code, tuple(answer.json()["output_ids"])

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(NUM_REQUESTS)))
    assert {status for status, _ in answers} == {200}
    assert len(set(answers[0::2])) == len(set(answers[1::2])) == 1
    after = states_of(replicas)
    assert all(now["num_prefills"] > then for now, then in zip(after, before, strict=True))
    finished = sum(c["num_finished"] for s in after for c in s["attainment"].values())
    attained = sum(c["num_attained"] for s in after for c in s["attainment"].values())
    assert finished == attained >= NUM_REQUESTS, "an arrival that was lost would be late"


def test_each_replica_shows_its_own_state(replicas):
    """``GET /flowprefill/state?dp_rank=N`` asks the scheduler of that replica."""
    states = [
        httpx.get(f"{replicas.url}/flowprefill/state", params={"dp_rank": rank}, timeout=30.0)
        for rank in (0, 1)
    ]
    assert [state.status_code for state in states] == [200, 200]
    arrived = [sum(c["num_arrived"] for c in state.json()["classes"]) for state in states]
    assert all(count > 0 for count in arrived)
    replicas.require_healthy()
