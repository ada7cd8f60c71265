"""Installed but not enabled changes nothing; enabled, it is on or the start fails."""

import json

import pytest

from tests.integration.serving import run_python

# Starts a fresh interpreter that imports SGLang's scheduler: seconds each.
pytestmark = pytest.mark.server

OLD_VERSION = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "0.4.0" if name == "sglang" else real(name)
"""
STATE = """
import argparse, sys
import sglang.srt.managers.scheduler as scheduler
import sglang.srt.entrypoints.engine
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
load_plugins()
from sglang.srt.server_args import ServerArgs
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
print("scheduler", scheduler.Scheduler.__name__)
print("hooks", len([h for hooks in HookRegistry._hooks.values() for h in hooks]))
print("flags", "--flowprefill-policy" in parser.format_help())
print("attention", ATTENTION_BACKENDS["torch_native"].__module__)
print("adapter", "sglang_flowprefill.adapter.serving.scheduler" in sys.modules)
"""


def test_not_enabled_leaves_sglang_stock():
    """Without the variable: no hook, no flag, no replaced class, no backend of ours."""
    result = run_python(STATE, SGLANG_FLOWPREFILL="", SGLANG_USE_CPU_ENGINE="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-5:] == [
        "scheduler Scheduler",
        "hooks 0",
        "flags False",
        "attention sglang.srt.layers.attention.attention_registry",
        "adapter False",
    ]


def test_enabled_replaces_the_scheduler():
    """With the variable everything of ours is in place."""
    result = run_python(STATE, SGLANG_FLOWPREFILL="1", SGLANG_USE_CPU_ENGINE="1")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "scheduler FlowPrefillScheduler" in lines
    assert "flags True" in lines
    assert "attention sglang_flowprefill.adapter.model.attention" in lines


def test_kernels_alone_leave_the_scheduler_stock():
    """Hooks for weights and KV writes, and the attention; no flag, no scheduler of ours."""
    result = run_python(STATE, SGLANG_FLOWPREFILL="kernels", SGLANG_USE_CPU_ENGINE="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-5:] == [
        "scheduler Scheduler",
        "hooks 3",
        "flags False",
        "attention sglang_flowprefill.adapter.model.attention",
        "adapter False",
    ]


@pytest.mark.parametrize("value", ["1", "kernels"])
def test_wrong_sglang_version_stops_the_start(value):
    """An unsupported version is an error with the remedy, not a stock server."""
    code = OLD_VERSION + STATE
    result = run_python(code, SGLANG_FLOWPREFILL=value, SGLANG_USE_CPU_ENGINE="1")
    assert result.returncode == 1
    assert "pip install sglang==0.5.23" in result.stderr


UNUSABLE = {
    "--flowprefill-strict --chunked-prefill-size 2048": "taken over, which --flowprefill-strict",
    "--nnodes 2": "--nnodes 2",
    "--enable-lora": "--enable-lora True",
    "--flowprefill-policy magic": "choose one of edf, fcfs, hrrn, s-edf, s-edf-paper, sjf",
    "--flowprefill-max-suspended 0": "--flowprefill-max-suspended",
    "--flowprefill-tpot-slo-ms fast": "expected a value of type float",
    "--flowprefill-slo-config no-such-file.yaml": "cannot read the file",
}
LAUNCH = """
import json, sys
from sglang_flowprefill.launch_server import main
answers = []
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments.split())
    except SystemExit as exit:
        answers.append(str(exit.code))
print(json.dumps(answers))
"""


def test_unusable_settings_stop_the_start(tmp_path):
    """A bad flag or an unsupported combination is one clear message, naming the flag."""
    config = tmp_path / "config.yaml"
    config.write_text("flowprefill-policy: from-a-file\n")
    unusable = UNUSABLE | {f"--config {config}": "'from-a-file'"}
    result = run_python(LAUNCH, json.dumps(list(unusable)))
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout.splitlines()[-1])
    for answer, (arguments, message) in zip(answers, unusable.items(), strict=True):
        assert answer.startswith("flowprefill: error:"), arguments
        assert message in answer


def test_filtered_out_plugin_is_an_error_not_a_stock_server():
    """If SGLANG_PLUGINS keeps our plugin out, the launcher refuses to serve."""
    result = run_python(LAUNCH, '[""]', SGLANG_PLUGINS="something-else")
    assert "flowprefill: error: SGLANG_PLUGINS" in result.stdout


TAKEN_OVER = """
import json, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import prepare_server_args
from sglang_flowprefill.adapter import flags
found = []
for arguments in json.loads(sys.argv[1]):
    args = prepare_server_args(["--model-path", "nowhere", "--device", "cpu", *arguments.split()])
    flags.prepare_settings(args)
    config = flags.config_of(args)
    of_sglang = [getattr(args, name) for name in ("chunked_prefill_size", *flags._OFF)]
    found.append([config.max_chunk_tokens, config.policy, of_sglang])
print(json.dumps(found))
"""
EVERYTHING = (
    "--chunked-prefill-size 777 --scheduler-recv-interval 30 --num-continuous-decode-steps 4 "
    "--enable-prefill-delayer --prefill-decode-interval 10 --enable-mixed-chunk "
    "--schedule-policy shortest-prefill-first"
)


def test_what_is_taken_over_reaches_our_settings_and_is_off_in_sglang():
    """Chunk size and policy become ours, a flag of ours goes before; each gets one log line."""
    lines = (
        EVERYTHING,
        f"{EVERYTHING} --flowprefill-max-chunk-tokens 8192 --flowprefill-policy s-edf",
        "--schedule-policy lpm",
    )
    result = run_python(TAKEN_OVER, json.dumps(lines), SGLANG_FLOWPREFILL="1")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    off = [-1, 1, 1, False, 0, False, "fcfs"]
    assert found == [[777, "sjf", off], [8192, "s-edf", off], [8192, "s-edf", off]]
    said = [line for line in result.stderr.splitlines() if "FlowPrefill takes over --" in line]
    assert len(said) == 7 + 7 + 1


ALIAS = """
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import prepare_server_args
from sglang_flowprefill.adapter import flags
flags.require_supported_settings = lambda record, is_strict: None
args = prepare_server_args(["--model-path", "nowhere", "--attention-backend", "flowprefill_cpu"])
flags.prepare_settings(args)
print("backend", args.attention_backend)
"""


def test_our_attention_backend_has_a_name_of_its_own():
    """``flowprefill_cpu`` is accepted, and is the backend registered as ``torch_native``."""
    result = run_python(ALIAS, SGLANG_FLOWPREFILL="1", SGLANG_USE_CPU_ENGINE="1")
    assert "backend torch_native" in result.stdout, result.stderr
