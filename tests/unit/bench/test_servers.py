"""Servers are started alike, and leave no process behind."""

import asyncio
import os

import pytest

from bench import servers
from bench.errors import ServerError
from bench.servers import Launch, ServerOptions, plan_launch, running_server

FLAGS = ServerOptions(model_path="some/model")


def scheduling(command):
    """Pick the flags that decide scheduling."""
    return [flag for flag in command if "overlap" in flag or "chunked" in flag]


def test_systems_differ_in_nothing_but_themselves():
    """Model, device and memory flags are equal; module and scheduling flags are not."""
    commands = {name: plan_launch(name, FLAGS, 1234).command for name in servers.SYSTEMS}
    assert commands["flowprefill"][2] == "sglang_flowprefill.launch_server"
    assert commands["stock"][2] == "sglang.launch_server"
    common = set(commands["stock"][3:])
    assert common <= set(commands["stock-tuned"])
    assert common <= set(commands["flowprefill"])
    assert {"some/model", "1234", "cpu", "--disable-radix-cache"} <= common


def test_stock_keeps_its_own_scheduling():
    """Overlap and chunked prefill of stock are as SGLang chooses; stock-tuned has neither."""
    assert scheduling(plan_launch("stock", FLAGS, 1).command) == []
    tuned = plan_launch("stock-tuned", FLAGS, 1).command
    assert sorted(scheduling(tuned)) == ["--chunked-prefill-size", "--disable-overlap-schedule"]


def test_stock_never_inherits_the_switch(monkeypatch):
    """FlowPrefill's variables reach its own server only; the CPU engine is on for both."""
    monkeypatch.setenv("SGLANG_FLOWPREFILL", "1")
    monkeypatch.setenv("SGLANG_FLOWPREFILL_POLICY", "fcfs")
    stock = plan_launch("stock", FLAGS, 1).environment()
    assert not [name for name in stock if name.startswith("SGLANG_FLOWPREFILL")]
    assert stock["SGLANG_USE_CPU_ENGINE"] == "1"
    assert plan_launch("flowprefill", FLAGS, 1).environment()["SGLANG_FLOWPREFILL"] == "1"


def test_flags_can_be_added_for_all_and_for_one():
    """More flags go to everybody or to the one system named."""
    options = ServerOptions(
        model_path="m", use_radix_cache=True, flags=("--a",), flags_for={"stock": ("--b",)}
    )
    stock = plan_launch("stock", options, 1).command
    other = plan_launch("flowprefill", options, 1).command
    assert {"--a", "--b"} <= set(stock)
    assert "--a" in other
    assert "--b" not in other
    assert "--disable-radix-cache" not in stock


def test_only_flowprefill_is_given_slo_classes(tmp_path):
    """The file of SLO classes is a flag that stock would refuse."""
    options = ServerOptions(model_path="m", slo_config=tmp_path / "slo-classes.yaml")
    assert "--flowprefill-slo-config" in plan_launch("flowprefill", options, 1).command
    assert "--flowprefill-slo-config" not in plan_launch("stock", options, 1).command


def start(monkeypatch, tmp_path, script, options=FLAGS):
    """Run this shell script as if it were a server."""
    launch = Launch(("sh", "-c", script), {}, keeps_switches=False)
    monkeypatch.setattr(servers, "plan_launch", lambda *_: launch)
    monkeypatch.setattr(servers, "_HEALTH_INTERVAL_S", 0.01)

    async def go():
        async with running_server("stock", options, tmp_path / "log", 16):
            pass

    asyncio.run(go())


def test_server_that_dies_shows_the_end_of_its_log(monkeypatch, tmp_path):
    """The error names the status and quotes the log."""
    with pytest.raises(ServerError, match=r"(?s)stock ended with status 3.*out of memory"):
        start(monkeypatch, tmp_path, "echo out of memory; exit 3")


def test_server_that_never_serves_is_killed_with_its_children(monkeypatch, tmp_path):
    """After the start-up time the whole process group is gone, even where it ignores SIGTERM."""
    monkeypatch.setattr(servers, "_STOP_TIMEOUT_S", 0.02)
    script = "trap '' TERM; sleep 60 & echo $$ $!; wait"
    options = ServerOptions(model_path="m", startup_timeout_s=0.3)
    with pytest.raises(ServerError, match="not healthy after"):
        start(monkeypatch, tmp_path, script, options)
    pids = [int(line) for line in (tmp_path / "log").read_text().split()]
    assert len(pids) == 2
    for pid in pids:
        assert _is_gone(pid)


def _is_gone(pid):
    """A killed grandchild may stay a zombie until init reaps it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[0] == "Z"
