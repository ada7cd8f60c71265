"""SGLang's own benchmark runs against the server, offline, with SLOs."""

import json
import os
import subprocess
import sys

import pytest

from sglang_flowprefill.cpu.embedded_model import embedded_model_path

pytestmark = pytest.mark.server

NUM_PROMPTS = 6


@pytest.mark.parametrize(
    "slo_arguments",
    [
        ["--backend", "sglang", "--header", "x-slo-class=interactive"],
        [
            "--backend",
            "sglang-oai",
            "--extra-request-body",
            '{"custom_params": {"ttft_slo_ms": 500, "slo_class": "interactive"}}',
        ],
    ],
    ids=["header", "body"],
)
def test_bench_serving_with_slos(server, tmp_path, slo_arguments):
    """All its requests succeed and are counted under the SLO class that it asked for."""
    before = server.statistics()["attainment"].get("interactive", {"num_finished": 0})
    output = tmp_path / "result.jsonl"
    port = server.url.rpartition(":")[2]
    model_folder = str(embedded_model_path("float32"))
    command = [sys.executable, "-m", "sglang.benchmark.serving", "--port", port]
    command += ["--tokenizer", model_folder, "--model", model_folder]
    command += ["--dataset-name", "random-ids", "--random-input-len", "32"]
    command += ["--random-output-len", "4", "--random-range-ratio", "1.0"]
    command += ["--num-prompts", str(NUM_PROMPTS), "--request-rate", "4"]
    command += ["--goodput", "ttft:5000", "--output-file", str(output), *slo_arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "SGLANG_USE_CPU_ENGINE": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(output.read_text().splitlines()[-1])["completed"] == NUM_PROMPTS
    after = server.statistics()["attainment"]["interactive"]
    assert after["num_finished"] - before["num_finished"] >= NUM_PROMPTS
