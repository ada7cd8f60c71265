"""Each engine is asked, and understood, in its own words."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.systems.client import http_session, timed_generate
from bench.systems.engine import Endpoint, StreamError, StreamState
from bench.systems.sglang import STOCK
from bench.systems.vllm import VLLM

# Recorded from vLLM 0.32.0; ids and the model's name are cut.
VLLM_STREAM = (
    b'data: {"id":"c","object":"text_completion","choices":[{"index":0,"text":" Paris",'
    b'"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":6,"total_tokens":7,'
    b'"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b'data: {"id":"c","object":"text_completion","choices":[{"index":0,"text":".",'
    b'"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":6,"total_tokens":8,'
    b'"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b'data: {"id":"c","object":"text_completion","choices":[],"usage":{"prompt_tokens":6,'
    b'"total_tokens":8,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}},'
    b'"system_fingerprint":"vllm-0.32.0"}\n\n'
    b"data: [DONE]\n\n"
)
VLLM_REFUSAL = (
    '{"error":{"message":"This model\'s maximum context length is 8192 tokens.",'
    '"type":"BadRequestError","param":"input_tokens","code":400}}'
)


def ask(handler, engine=VLLM):
    """Send one request to a server that answers by this handler; return the timing."""

    async def go():
        app = web.Application()
        app.router.add_post("/v1/completions", handler)
        async with TestServer(app) as server, http_session() as session:
            endpoint = Endpoint(str(server.make_url("")).rstrip("/"), engine)
            return await timed_generate(session, endpoint, engine.encode([1, 2], 2), 5.0)

    return asyncio.run(go())


def test_vllm_stream_is_timed_and_counted():
    """First token, tokens and cached tokens come from the recorded lines."""

    async def stream(request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(VLLM_STREAM)
        return response

    timing = ask(stream)
    assert timing.error is None
    assert 0.0 < timing.ttft_s < 5.0
    assert (timing.num_generated_tokens, timing.num_cached_tokens) == (2, 4)


def test_vllm_refusal_is_an_error_with_its_reason():
    """A status other than 200 carries the message."""

    async def refuse(_request):
        return web.Response(status=400, text=VLLM_REFUSAL)

    assert "maximum context length" in ask(refuse).error


@pytest.mark.parametrize("engine", [STOCK, VLLM])
def test_error_in_the_stream_is_an_error(engine):
    """Both engines report late failures in a line of a stream with status 200."""
    with pytest.raises(StreamError, match="out of memory"):
        engine.read({"error": {"message": "out of memory"}})


def test_sglang_lines_count_tokens():
    """Generated and cached tokens are in meta_info; an abort is an error."""
    meta = {"completion_tokens": 3, "cached_tokens": 5, "finish_reason": None}
    assert STOCK.read({"text": "", "meta_info": meta}) == StreamState(3, 5)
    with pytest.raises(StreamError, match="too long"):
        STOCK.read({"meta_info": {"finish_reason": {"type": "abort", "message": "too long"}}})


def test_engines_are_asked_for_the_same():
    """Same ids, greedy, the exact number of tokens, streaming."""
    sglang = json.loads(STOCK.encode([5, 6], 3).body)
    vllm = json.loads(VLLM.encode([5, 6], 3).body)
    assert (sglang["input_ids"], vllm["prompt"]) == ([5, 6], [5, 6])
    assert (sglang["sampling_params"]["max_new_tokens"], vllm["max_tokens"]) == (3, 3)
    for sampling in (sglang["sampling_params"], vllm):
        assert (sampling["temperature"], sampling["ignore_eos"]) == (0.0, True)
    assert (sglang["stream"], vllm["stream"]) == (True, True)


def test_objective_is_told_in_the_way_of_each_engine():
    """Headers for FlowPrefill; vLLM's smaller number goes first, only where it takes one."""
    objective = {"slo_ttft_s": 0.25, "slo_class": "text"}
    assert STOCK.encode([1], 1, **objective).headers["x-slo-ttft-ms"] == "250"
    assert (
        json.loads(
            VLLM.speaking_as(["--scheduling-policy", "priority"]).encode([1], 1, **objective).body
        )["priority"]
        == 250
    )
    assert "priority" not in json.loads(
        VLLM.speaking_as(["--scheduling-policy", "priority"]).encode([1], 1).body
    )
    assert "priority" not in json.loads(VLLM.encode([1], 1, **objective).body)
