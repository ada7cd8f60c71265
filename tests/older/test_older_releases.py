"""FlowPrefill on older releases of SGLang, by patches and by SGLang's own launch command."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from bench.systems.servers import free_port
from sglang_flowprefill.cpu.defaults import cpu_environment, cpu_server_defaults
from sglang_flowprefill.cpu.embedded_model import embedded_model_path
from tests.integration.serving import generate_body, running, tokens

pytestmark = pytest.mark.older

PROMPT_LENGTHS = (7, 60, 300, 1100)
NUM_OUTPUT_TOKENS = 8
LONG, URGENT = tokens(3000, seed=101), tokens(40, seed=102)
# Generous: on a busy machine a tight objective would be hopeless, and hopeless ones come last.
LONG_SLO_MS, URGENT_SLO_MS = 600_000, 30_000
CHECK_TABLE = """
import sglang.srt.entrypoints.http_server, sglang.srt.managers.scheduler
from sglang_flowprefill.adapter import compat
compat.verify_version()
compat.verify_symbols()
compat.verify_symbols(compat.UPSTREAM_HTTP)
"""


@contextmanager
def sglang_server(environment, folder, **variables):
    """Serve with SGLang's own command, as somebody does who knows nothing of FlowPrefill."""
    model, port = str(embedded_model_path("float32")), free_port()
    flags = ["--model-path", model, "--dtype", "float32", "--host", "127.0.0.1"]
    flags += ["--port", str(port), *cpu_server_defaults([])]
    command = [environment.python, "-m", "sglang.launch_server", *flags]
    settings = os.environ | cpu_environment(model) | variables
    log = folder / f"{environment.version}-{port}.log"
    with running(command, settings, port, log) as server:
        yield server


def greedy(server):
    """Return what a server answers to a few prompts."""
    return [
        server.generate(tokens(length, seed=length), NUM_OUTPUT_TOKENS)["output_ids"]
        for length in PROMPT_LENGTHS
    ]


def require_urgent_first(server):
    """Assert that an urgent prompt is answered while a long one is being prefilled."""
    with ThreadPoolExecutor() as pool:
        long = pool.submit(server.generate, LONG, 2, ttft_slo_ms=LONG_SLO_MS)
        time.sleep(1.0)
        server.generate(URGENT, 2, ttft_slo_ms=URGENT_SLO_MS)
        assert not long.done()
        assert long.result()["meta_info"]["completion_tokens"] == 2


def require_abort(server):
    """Assert that an abort ends a prefill that is under way."""
    with ThreadPoolExecutor() as pool:
        body = generate_body(tokens(3000, seed=103), 2, rid="to-abort")
        answer = pool.submit(server.post, "/generate", body)
        time.sleep(1.0)
        server.post("/abort_request", {"rid": "to-abort"})
        assert answer.result().json()["meta_info"]["finish_reason"]["type"] == "abort"


def test_compat_table_holds(environment):
    """Every symbol that the table promises for an older release is there."""
    done = environment.run("-c", CHECK_TABLE)
    assert done.returncode == 0, done.stderr


def test_patch_serve_revert(environment, tmp_path):
    """Patched, it preempts and answers as stock does; reverted, not a byte differs."""
    before = environment.fingerprint()
    checked = environment.patch("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert environment.fingerprint() == before
    applied = environment.patch("apply")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert environment.patch("status").returncode == 0

    # No entry point may load it: what does is the patch.
    on = {"SGLANG_FLOWPREFILL": "1", "SGLANG_PLUGINS": "none"}
    with sglang_server(environment, tmp_path, **on) as server:
        answers = greedy(server)
        require_urgent_first(server)
        require_abort(server)
        statistics = server.wait_until_idle()
        server.require_no_leaks()  # 0.5.10 logs a traceback for each optional package it misses
        malformed = server.post("/generate", generate_body([5, 6], 1, slo_class="no such class"))
    assert statistics["num_preemptions"] >= 1
    assert statistics["num_cancelled"] == 1
    assert malformed.status_code == 400

    with sglang_server(environment, tmp_path) as stock:
        assert greedy(stock) == answers

    assert environment.patch("revert").returncode == 0
    assert environment.fingerprint() == before
    assert environment.patch("status").returncode == 3
