"""Prompts in several forward passes, too little memory for all, and the timeline of it."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sglang_flowprefill.observe.timeline_reader import read_timeline
from tests.integration.serving import generate_body, serving, tokens

pytestmark = pytest.mark.server

CHUNK_TOKENS = 256
POOL_TOKENS = 3000
TIGHT = {"x-slo-ttft-ms": "60000"}
LOOSE = {"x-slo-ttft-ms": "600000"}


@pytest.fixture(scope="module")
def timeline_file(tmp_path_factory):
    """Where the server writes its timeline."""
    return tmp_path_factory.mktemp("timeline") / "trace.json"


@pytest.fixture(scope="module")
def small_server(tmp_path_factory, timeline_file):
    """A server with small chunks and a small KV pool; chunks and more by flags taken over."""
    flags = ["--chunked-prefill-size", str(CHUNK_TOKENS), "--flowprefill-check-cursors"]
    flags += ["--scheduler-recv-interval", "30", "--num-continuous-decode-steps", "4"]
    flags += ["--enable-mixed-chunk", "--prefill-decode-interval", "10", "--schedule-policy", "lpm"]
    flags += ["--enable-prefill-delayer"]
    flags += ["--max-total-tokens", str(POOL_TOKENS), "--flowprefill-trace", str(timeline_file)]
    flags += ["--flowprefill-tpot-slo-ms", "2000"]
    with serving("flowprefill", tmp_path_factory.mktemp("chunks"), *flags) as running:
        yield running


@pytest.mark.parametrize("num_tokens", [255, 256, 257, 1000])
def test_a_prompt_in_chunks_gives_the_same_tokens_and_log_probabilities(
    server, small_server, num_tokens
):
    """One forward pass or several: the same model."""
    fields = {"return_logprob": True, "logprob_start_len": 0}
    ids = tokens(num_tokens, seed=num_tokens)
    whole, in_chunks = (s.generate(ids, 8, **fields) for s in (server, small_server))
    assert in_chunks["output_ids"] == whole["output_ids"]
    assert in_chunks["meta_info"]["cached_tokens"] == 0
    expected, found = (
        [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]]
        for answer in (whole, in_chunks)
    )
    assert found == pytest.approx(expected, abs=1e-3)


def test_several_partly_prefilled_prompts_coexist(server, small_server):
    """Each is overtaken by the next one in the middle of its chunks; all answers are right."""
    prompts = [tokens(800, seed=seed) for seed in (11, 12, 13)]
    expected = [server.generate(ids, 4)["output_ids"] for ids in prompts]
    before = small_server.statistics()["num_preemptions"]
    with ThreadPoolExecutor(3) as pool:
        futures = []
        for index, ids in enumerate(prompts):
            slo = {"x-slo-ttft-ms": str(300_000 - 100_000 * index)}
            futures.append(pool.submit(small_server.post, "/generate", generate_body(ids, 4), slo))
            while small_server.statistics()["num_unfinished_prefills"] <= index:
                assert not futures[-1].done(), "the prompts should overlap"
        answers = [future.result().json()["output_ids"] for future in futures]
    assert answers == expected
    assert small_server.statistics()["num_preemptions"] >= before + 2
    small_server.wait_until_idle()
    small_server.require_healthy()


def test_a_prefill_that_is_dropped_for_memory_starts_over_and_finishes(server, small_server):
    """The pool holds one of two prompts; the tight one gets it, the other loses its work.

    Sixty tokens of decoding at two seconds each may hold the memory beyond its deadline.
    """
    loose_ids, tight_ids = tokens(2000, seed=21), tokens(1500, seed=22)
    expected = [server.generate(loose_ids, 60)["output_ids"]]
    expected += [server.generate(tight_ids, 4)["output_ids"]]
    before = small_server.statistics()
    with ThreadPoolExecutor(1) as pool:
        loose = pool.submit(small_server.post, "/generate", generate_body(loose_ids, 60), LOOSE)
        while small_server.statistics()["num_unfinished_prefills"] == 0:
            time.sleep(0.01)
        tight = small_server.post("/generate", generate_body(tight_ids, 4), TIGHT)
        assert not loose.done()
        assert [r.json()["output_ids"] for r in (loose.result(), tight)] == expected
    after = small_server.wait_until_idle()
    assert after["num_restarts"] == before["num_restarts"] + 1
    assert after["lost_s"] > before["lost_s"]
    small_server.require_healthy()


def test_the_timeline_shows_every_chunk_and_every_operator(small_server, timeline_file):
    """Readable while the server runs: an idle server has written what happened so far."""
    small_server.generate(tokens(600, seed=31), 2)
    small_server.wait_until_idle()
    recorded = read_timeline(timeline_file)
    last = max(slice_.batch_id for slice_ in recorded.running)
    chunks = [s for s in recorded.running if s.batch_id == last]
    assert [s.end for s in chunks if s.end != "yield"] == ["chunk finished"] * 2 + ["finished"]
    operators = {o.name for s in chunks for o in s.operators}
    assert {"model.layers.0.mlp.down_proj", "model.layers.29.self_attn.attn"} <= operators
    assert recorded.rounds
