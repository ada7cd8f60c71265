"""Two ranks act as one: they stop together, go on together, and end together."""

import http.client
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.systems.servers import log_tail
from sglang_flowprefill.cpu.embedded_model import embedded_model_path
from tests.integration.serving import generate_body, serving, tokens

pytestmark = pytest.mark.server

LIMIT_S = 60.0

# Prompts and their numbers of output tokens.
MIXED = [(tokens(n, seed=500 + n), 1 + n % 20) for n in (39, 1400, 200, 333, 1, 900, 64, 400)]
LONG_ANSWERS = [(tokens(40, seed=600 + index), 120) for index in range(4)]
LONG_PROMPTS = [(tokens(300, seed=800 + index), 2) for index in range(12)]

# So that the tiny model has row tiles, each with a collective of its own, and chunks.
TILES_AND_CHUNKS = ("--flowprefill-max-operator-ms", "0.5", "--flowprefill-max-chunk-tokens", "512")

# The long answers grow by 480 tokens, more than the 300 that at most are left once the long
# prompts have filled the memory: hardly any is reserved for future tokens.
SMALL_MEMORY = ("--max-total-tokens", "2900", "--schedule-conservativeness", "0.01")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny llama with random weights, whose heads two ranks can share."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        # The usual 0.02 would make all tiny models repeat one token.
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_model_path("float32") / name, folder)
    return folder


@pytest.fixture(scope="module")
def launch(model, tmp_path_factory):
    """Start a server on two ranks; the second finds the first one's prefill costs."""
    folder = tmp_path_factory.mktemp("tensor-parallel")

    def launch(*flags):
        flags += ("--tp", "2", "--flowprefill-profile-cache-dir", str(folder), *TILES_AND_CHUNKS)
        seconds = {"SGLANG_REQUEST_STATE_WAIT_TIMEOUT": "1"}  # how soon a lost client is noticed
        return serving("flowprefill", folder, *flags, model_path=str(model), **seconds)

    return launch


@pytest.fixture(scope="module")
def undisturbed(launch):
    """A server that runs every prefill from its start to its end."""
    with launch("--flowprefill-policy", "fcfs") as server:
        yield server


@pytest.fixture(scope="module")
def stressed(launch):
    """A server that suspends at every boundary and compares its ranks there."""
    with launch("--flowprefill-stress", "--flowprefill-check-cursors", *SMALL_MEMORY) as server:
        yield server


def ask(pool, server, requests):
    """Send all requests at once; return a function that waits for the tokens of all."""
    bodies = [generate_body(*request) for request in requests]
    for body, (_, num_output_tokens) in zip(bodies, requests, strict=True):
        # As long as with ignore_eos, for which SGLang would reserve all of its memory.
        body["sampling_params"] |= {"ignore_eos": False, "min_new_tokens": num_output_tokens}
    futures = [pool.submit(server.post, "/generate", body) for body in bodies]
    return lambda: [future.result().json()["output_ids"] for future in futures]


def wait_for(server, condition):
    """Return once the server's statistics are as wanted."""
    limit_s = time.monotonic() + LIMIT_S
    while not condition(server.statistics()):
        assert time.monotonic() < limit_s


def test_ranks_interleave_prefills_and_give_the_same_tokens(undisturbed, stressed):
    """Prefills interleaved with each other and with decode steps equal whole ones."""
    with ThreadPoolExecutor(len(MIXED)) as pool:
        expected = ask(pool, undisturbed, MIXED)()
        assert undisturbed.statistics()["num_preemptions"] == 0
        before = stressed.statistics()["num_preemptions"]
        assert ask(pool, stressed, MIXED)() == expected
    assert stressed.wait_until_idle()["num_preemptions"] - before > 200
    stressed.require_healthy()


def test_ranks_drop_the_same_prefill_for_want_of_memory(undisturbed, stressed):
    """Decode that runs out of memory restarts suspended prefills; all tokens are as ever."""
    with ThreadPoolExecutor(len(LONG_ANSWERS + LONG_PROMPTS)) as pool:
        expected = ask(pool, undisturbed, LONG_ANSWERS + LONG_PROMPTS)()
        before = stressed.wait_until_idle()
        answers = ask(pool, stressed, LONG_ANSWERS)
        wait_for(stressed, lambda now: now["num_decode_steps"] > before["num_decode_steps"])
        others = ask(pool, stressed, LONG_PROMPTS)
        assert answers() + others() == expected
    assert stressed.wait_until_idle()["num_restarts"] > before["num_restarts"]
    stressed.require_healthy()


def test_prefills_are_aborted_on_all_ranks(undisturbed, stressed):
    """Lost clients and aborts in the middle of a prefill leave idle, healthy ranks."""
    prompt = tokens(900, seed=20)
    before = stressed.wait_until_idle()["num_cancelled"]
    address = urlsplit(stressed.url)
    clients = [http.client.HTTPConnection(address.hostname, address.port) for _ in range(4)]
    for index, client in enumerate(clients):
        body = generate_body(tokens(700, seed=900 + index), 200)
        client.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
    with ThreadPoolExecutor(2) as pool:
        stays = pool.submit(stressed.generate, prompt, 8)
        body = generate_body(tokens(2000, seed=21), 1, rid="goes")
        goes = pool.submit(stressed.post, "/generate", body)
        wait_for(stressed, lambda now: now["num_unfinished_prefills"] >= 2)
        for client in clients:
            client.close()
        stressed.post("/abort_request", {"rid": "goes"})
        assert goes.result().status_code in (200, 400, 499, 503)
        assert stays.result()["output_ids"] == undisturbed.generate(prompt, 8)["output_ids"]
    assert stressed.wait_until_idle()["num_cancelled"] > before
    stressed.require_healthy()


def test_idle_ranks_use_no_cpu(stressed):
    """With nothing to do all ranks sleep."""
    stressed.wait_until_idle()
    ranks = scheduler_processes(stressed)
    assert len(ranks) == 2

    def cpu_s():
        return sum(sum(rank.cpu_times()[:2]) for rank in ranks)

    before_s = cpu_s()
    time.sleep(3.0)
    assert cpu_s() - before_s < 0.6


def test_a_killed_rank_ends_the_server(undisturbed):
    """A rank that dies in a forward pass takes the others along at once, with the reason."""
    family = [undisturbed.process, *processes(undisturbed)]
    with ThreadPoolExecutor(4) as pool:
        body = generate_body(tokens(7000, seed=1))
        for _ in range(4):
            pool.submit(undisturbed.post, "/generate", body)
        wait_for(undisturbed, lambda now: now["num_unfinished_prefills"] > 0)
        follower = next(p for p in scheduler_processes(undisturbed) if "TP1" in p.name())
        follower.kill()
        undisturbed.process.wait(LIMIT_S)
    limit_s = time.monotonic() + LIMIT_S
    while any(is_running(process.pid) for process in family):
        assert time.monotonic() < limit_s, "orphans"
    text = Path(undisturbed.log).read_text(errors="replace")
    assert f"rank 1 (process {follower.pid}) ended" in text, log_tail(undisturbed.log)


def processes(server):
    """Return all processes of a server but the first."""
    return psutil.Process(server.process.pid).children(recursive=True)


def scheduler_processes(server):
    """Return the ranks."""
    return [p for p in processes(server) if "scheduler" in " ".join(p.cmdline())]


def is_running(pid):
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
