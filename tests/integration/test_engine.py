"""``sglang.Engine`` in a program of the user's own, with FlowPrefill enabled."""

import json
import os
import subprocess
import sys

import pytest

from sglang_flowprefill.cpu.defaults import cpu_environment
from sglang_flowprefill.cpu.embedded_model import embedded_model_path

pytestmark = pytest.mark.server

PROGRAM = """
import json, sys
import sglang_flowprefill

if __name__ == "__main__":
    sglang_flowprefill.enable()
    import sglang

    engine = sglang.Engine(
        model_path=sys.argv[1], device="cpu", attention_backend="torch_native", dtype="float32",
        mem_fraction_static=0.7, max_total_tokens=4096, sleep_on_idle=True, log_level="error",
    )
    def ask(slo):
        params = {"temperature": 0, "max_new_tokens": 4, "custom_params": {"ttft_slo_ms": slo}}
        return engine.generate("The capital of France is", params)["text"]
    answers = [ask(250)]
    try:
        ask(-1)
    except ValueError as error:
        answers.append(str(error))
    info = engine.get_server_info()["internal_states"][0]["flowprefill"]
    answers.append(sum(c["num_finished"] for c in info["attainment"].values()))
    engine.shutdown()
    print(json.dumps(answers))
"""


def test_engine_generate_takes_slos(tmp_path):
    """A good SLO is served and counted; a bad one raises ValueError in the caller's program."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    model_folder = str(embedded_model_path("float32"))
    result = subprocess.run(
        [sys.executable, str(program), model_folder],
        env=os.environ | cpu_environment(model_folder),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    text, error, num_finished = json.loads(result.stdout.strip().splitlines()[-1])
    assert "Paris" in text
    assert "ttft_slo_ms" in error
    assert num_finished == 1


def test_the_profile_command_shows_what_the_server_predicts_with(tmp_path):
    """It starts an engine with the server's flags, prints fit and residuals, and draws them."""
    picture = tmp_path / "profile.png"
    command = [sys.executable, "-m", "sglang_flowprefill", "profile", "--cached"]
    result = subprocess.run(
        [*command, "--plot", str(picture), "--dtype", "float32", "--max-total-tokens", "16384"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "64 tokens after 1024" in result.stdout
    assert "a query-key pair; throughput saturates at" in " ".join(result.stdout.split())
    assert picture.read_bytes().startswith(b"\x89PNG")
