"""Systems are started alike, and differ in nothing but themselves."""

from itertools import pairwise

import pytest

from bench.errors import UsageError
from bench.systems import vllm
from bench.systems.engine import ServerOptions
from bench.systems.named import SYSTEMS, plan_launch, system_named

FLAGS = ServerOptions(model_path="some/model")
OURS = [name for name in SYSTEMS if not name.startswith("vllm")]


def scheduling(command):
    """Pick the flags that decide scheduling."""
    return [flag for flag in command if "overlap" in flag or "chunked" in flag]


def test_systems_differ_in_nothing_but_themselves():
    """Model, device and memory flags are equal; module and scheduling flags are not."""
    commands = {name: plan_launch(name, FLAGS, 1234).command for name in OURS}
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
        model_path="m", use_prefix_cache=True, flags=("--a",), flags_for={"stock": ("--b",)}
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


def test_stock_kernel_is_stock_with_our_kernels_alone(monkeypatch):
    """Command line equal to stock's; one variable says kernels, and no other of ours gets in."""
    monkeypatch.setenv("SGLANG_FLOWPREFILL", "1")
    monkeypatch.setenv("SGLANG_FLOWPREFILL_POLICY", "fcfs")
    for stock, with_kernels in (
        ("stock", "stock-kernel"),
        ("stock-tuned", "stock-tuned-kernel"),
    ):
        plan = plan_launch(with_kernels, FLAGS, 1)
        assert plan.command == plan_launch(stock, FLAGS, 1).command
        ours = {k: v for k, v in plan.environment().items() if k.startswith("SGLANG_FLOWPREFILL")}
        assert ours == {"SGLANG_FLOWPREFILL": "kernels"}


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Pretend that make peers has run."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").touch()
    monkeypatch.setattr(vllm, "_ENVIRONMENT", tmp_path)
    monkeypatch.setattr(vllm.ctypes.util, "find_library", lambda name: f"lib{name}.so.4")
    return tmp_path


def test_vllm_runs_from_its_own_environment_at_its_best(installed, monkeypatch):
    """Its own executable, all cores, both libraries; none of FlowPrefill's variables."""
    monkeypatch.setenv("SGLANG_FLOWPREFILL", "1")
    monkeypatch.setattr(vllm.os, "sched_getaffinity", lambda _pid: {1, 0})
    plan = plan_launch("vllm", FLAGS, 1234)
    assert plan.command[:3] == (f"{installed}/bin/vllm", "serve", "some/model")
    assert {"1234", "--no-enable-prefix-caching"} <= set(plan.command)
    assert plan.variables["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert plan.variables["LD_PRELOAD"] == f"{installed}/lib/libiomp5.so:libtcmalloc_minimal.so.4"
    assert not [name for name in plan.environment() if name.startswith("SGLANG_FLOWPREFILL")]


def test_tuned_vllm_has_priorities_and_short_steps(installed):
    """What the default has not; a prefix cache where it is asked for; flags for it alone."""
    options = ServerOptions("m", use_prefix_cache=True, flags_for={"vllm-tuned": ("--x",)})
    default = set(plan_launch("vllm", options, 1).command)
    tuned = set(plan_launch("vllm-tuned", options, 1).command)
    assert "--enable-prefix-caching" in default
    assert {"--scheduling-policy", "priority", "256", "64", "--x"} <= tuned - default


@pytest.mark.parametrize(
    ("missing", "remedy"), [("environment", "make peers"), ("allocator", "apt-get install")]
)
def test_vllm_is_never_measured_handicapped(installed, monkeypatch, missing, remedy):
    """Without its environment or its allocator the error says what to do."""
    if missing == "environment":
        (installed / "lib" / "libiomp5.so").unlink()
    else:
        monkeypatch.setattr(vllm.ctypes.util, "find_library", lambda _name: None)
    with pytest.raises(UsageError, match=remedy):
        plan_launch("vllm", FLAGS, 1)


def test_vllm_is_a_peer_on_the_cpu_only(installed):
    """Its installed build has no other device."""
    with pytest.raises(UsageError, match="cuda"):
        plan_launch("vllm", ServerOptions("m", device="cuda"), 1)


def test_a_name_may_go_on_with_flags():
    """Flags with and without a value, and a client that speaks as they ask."""
    name = "stock+chunked-prefill-size=512+disable-overlap-schedule"
    command = plan_launch(name, FLAGS, 1).command
    assert ("--chunked-prefill-size", "512") in pairwise(command)
    assert "--disable-overlap-schedule" in command
    assert not system_named(name).engine.sends_priority
    by_priority = "stock+enable-priority-scheduling+schedule-low-priority-values-first"
    assert system_named(by_priority).engine.sends_priority
    assert system_named("vllm-tuned").engine.sends_priority
    with pytest.raises(UsageError, match="unknown system 'sglang'"):
        system_named("sglang+x")
