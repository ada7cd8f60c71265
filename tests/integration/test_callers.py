"""What callers write, in all the ways they write it, against a running server."""

import httpx
import pytest

from tests.integration.serving import REQUEST_TIMEOUT_S, generate_body, tokens

pytestmark = pytest.mark.server

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
COMPLETION = {"model": "m", "max_tokens": 1}


def num_finished(server, class_name):
    """Return how many first tokens of a class were counted, once nothing is under way."""
    attainment = server.wait_until_idle()["attainment"]
    return attainment.get(class_name, {"num_finished": 0})["num_finished"]


def require_refused(server, path, body, name, headers=None):
    """Assert a 400 that names a field, and that the scheduler never heard of the request."""
    before = server.statistics()["num_events"].get("arrival", 0)
    answer = server.post(path, body, headers)
    assert answer.status_code == 400, answer.text
    assert name in answer.text
    assert "Traceback" not in answer.text
    assert len(answer.text) < 1000
    assert server.statistics()["num_events"].get("arrival", 0) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"x-slo-ttft-ms": "0"},
        {"x-llm-d-slo-ttft-ms": "0"},
        {"x-slo-ttft-ms": "172800000"},
        {"x-slo-ttft-ms": "250", "x-llm-d-slo-ttft-ms": "250"},
        {"x-request-id-slo-ttft-ms": "250", "x-request-id-slo-tpot-ms": "50"},
    ],
    ids=str,
)
def test_headers_of_gateways_are_served(server, headers):
    """An expired job, two days, and names that routers forward are all objectives."""
    answer = server.post("/generate", generate_body(tokens(24, 70)), headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", ["x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms"])
def test_nonsense_in_a_gateways_header_is_http_400(server, name):
    """A header that counts is also validated."""
    require_refused(server, "/generate", generate_body([5, 6]), name, {name: "soon"})


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/generate", generate_body(tokens(20, 71)), ()),
        ("/generate", generate_body(tokens(20, 72)), ("custom_params",)),
        ("/v1/chat/completions", CHAT, ()),
        ("/v1/chat/completions", CHAT, ("custom_params",)),
        ("/v1/chat/completions", CHAT, ("sampling_params", "custom_params")),
        ("/v1/chat/completions", CHAT, ("extra_body", "custom_params")),
        ("/v1/completions", {**COMPLETION, "prompt": "Hi"}, ()),
    ],
    ids=str,
)
def test_a_class_counts_wherever_callers_write_it(server, path, body, place):
    """The request is reported under the class that it names."""
    before = num_finished(server, "document")
    stated = {"slo_class": "document"}
    for name in reversed(place):
        stated = {name: stated}
    answer = server.post(path, {**body, **stated})
    assert answer.status_code == 200, answer.text
    assert num_finished(server, "document") == before + 1


@pytest.mark.parametrize(
    "stated", [{"vllm_xargs": {"ttft_slo": 500.0}}, {"metadata": {"ttft_slo_ms": 500}}], ids=str
)
def test_an_objective_where_nobody_reads_it_is_http_400(server, stated):
    """Nothing is accepted and ignored."""
    require_refused(server, "/v1/chat/completions", {**CHAT, **stated}, "ttft_slo_ms")


@pytest.mark.parametrize("ids", [[5, -3], [5, 10**6], [5, 10**30], [[5, 6], [7, -1]]], ids=str)
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_token_ids_that_do_not_exist_are_http_400(server, path, ids):
    """They would fail inside a forward pass, beside the prompts of others."""
    answer = server.post(
        path, generate_body(ids) if path == "/generate" else {**COMPLETION, "prompt": ids}
    )
    assert 400 <= answer.status_code < 500, answer.text
    assert len(answer.text) < 2000
    server.require_healthy()


def test_beam_search_is_http_400_with_the_reason(server):
    """It is not served; the answer says why."""
    body = generate_body(tokens(20, 73))
    body["sampling_params"]["beam_width"] = 2
    require_refused(server, "/generate", body, "beam_width")


def test_parallel_samples_count_as_often_as_they_were_asked_for(server):
    """Three samples add three first tokens: not four, with the pass that fills the cache."""
    before = num_finished(server, "interactive")
    body = generate_body(tokens(100, 74), 2)
    body["sampling_params"] |= {"n": 3, "temperature": 0.8}
    answer = server.post("/generate", body, {"x-slo-class": "interactive"})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()) == 3
    assert num_finished(server, "interactive") == before + 3


@pytest.mark.parametrize("name", ["chat:fast", "s3://bucket/model"])
def test_models_may_have_colons_in_their_names(server, name):
    """Without adapters, what follows a colon is part of the name."""
    answers = [
        server.post("/v1/chat/completions", {**CHAT, "model": name}),
        server.post("/v1/completions", {**COMPLETION, "model": name, "prompt": "Hi"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text


def test_browsers_may_read_why_an_objective_was_refused(server):
    """The 400 has the CORS header that a 200 has, also after a large upload."""
    headers = {"origin": "http://chat.example", "x-slo-ttft-ms": "soon"}
    body = {"text": "a " * 1_500_000, "sampling_params": {"max_new_tokens": 1}}
    with httpx.Client(base_url=server.url, timeout=REQUEST_TIMEOUT_S) as client:
        refused = client.post("/generate", json=body, headers=headers)
        served = client.post(
            "/generate", json=generate_body([5, 6]), headers={"origin": "http://chat.example"}
        )
    assert refused.status_code == 400, refused.text
    assert served.status_code == 200, served.text
    name = "access-control-allow-origin"
    assert refused.headers[name] == served.headers[name]


def test_a_forged_arrival_does_not_count(server):
    """A caller that claims to have waited for years is not reported late."""
    params = {"flowprefill_arrival_unix_s": 1.0, "ttft_slo_ms": 60000}
    before = server.wait_until_idle()["attainment"].get("default", {"num_attained": 0})
    server.generate(tokens(20, 75), custom_params=params)
    after = server.wait_until_idle()["attainment"]["default"]
    assert after["num_attained"] == before["num_attained"] + 1
