"""A suspended prefill computes what an uninterrupted one computes, to the last bit."""

import threading

import pytest

from tests.integration.serving import generate_body, serving, tokens

pytestmark = pytest.mark.server

NUM_PROMPTS = 4
PROMPT_LENGTHS = (900, 40, 333, 1100)  # 1100 tokens: several attention tiles
NUM_OUTPUT_TOKENS = 6


def prompt(index):
    """Return one of the test prompts."""
    return tokens(PROMPT_LENGTHS[index], seed=100 + index)


def logits_of(answer):
    """Return every log-probability that an answer holds."""
    meta = answer["meta_info"]
    return meta["input_token_logprobs"], meta["output_token_logprobs"][0], answer["output_ids"][0]


@pytest.fixture(params=["float32", "bfloat16"])
def servers(request, server, tmp_path):
    """One server that is never interrupted here, and one that suspends at every boundary."""
    stress = ["--flowprefill-stress", "--flowprefill-check-cursors"]
    stress += ["--flowprefill-max-batch-tokens", "1"]  # one prompt per batch, as alone
    with serving("flowprefill", tmp_path, *stress, dtype=request.param) as stressed:
        if request.param == "float32":
            yield server, stressed
        else:  # the compiled kernels
            with serving("flowprefill", tmp_path, dtype=request.param) as undisturbed:
                yield undisturbed, stressed


def test_suspension_at_every_boundary_leaves_all_logprobs_bitwise_equal(servers):
    """Four prompts interleaved operator by operator, with decode steps, equal four run alone."""
    server, stress_server = servers
    fields = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2}
    alone = [server.generate(prompt(i), NUM_OUTPUT_TOKENS, **fields) for i in range(NUM_PROMPTS)]
    before = stress_server.statistics()
    together = [None] * NUM_PROMPTS

    def ask(index):
        together[index] = stress_server.generate(prompt(index), NUM_OUTPUT_TOKENS, **fields)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(NUM_PROMPTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = stress_server.statistics()
    assert after["num_preemptions"] - before["num_preemptions"] > 500, after
    assert after["num_decode_steps"] > before["num_decode_steps"]
    for expected, found in zip(alone, together, strict=True):
        assert logits_of(found) == logits_of(expected)
    stress_server.wait_until_idle()
    stress_server.require_healthy()


def test_greedy_output_equals_stock_sglang(server, tmp_path):
    """The same prompts give the same tokens as an unmodified server with chunking off."""
    prompts = [tokens(n, seed=n) for n in (1, 5, 33, 64, 257, 512, 700, 1300)]
    ours = [server.generate(ids, 12)["output_ids"] for ids in prompts]
    with serving("stock-tuned", tmp_path) as stock:
        body = generate_body(prompts[0], custom_params={"ttft_slo_ms": "any"})
        assert stock.post("/generate", body).status_code == 200, "stock validates no SLO"
        assert "flowprefill" not in str(stock.post("/server_info", {}).text)
        theirs = [stock.generate(ids, 12)["output_ids"] for ids in prompts]
    assert ours == theirs


def test_prefix_cache_hits_change_nothing(server):
    """A prompt answered from the prefix cache gives the tokens of its first time."""
    ids = tokens(600, seed=7)
    first = server.generate(ids, 8)
    second = server.generate(ids, 8)
    assert second["meta_info"]["cached_tokens"] > 500
    assert second["output_ids"] == first["output_ids"]
