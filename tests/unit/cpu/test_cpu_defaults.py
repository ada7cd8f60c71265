"""On a machine without a GPU the user need not know SGLang's CPU settings."""

import pytest

from sglang_flowprefill.cpu import defaults
from sglang_flowprefill.cpu.defaults import (
    cores_by_rank,
    cpu_environment,
    cpu_server_defaults,
    is_cpu_only,
)


@pytest.fixture(autouse=True)
def _no_engine_chosen(monkeypatch):
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)


@pytest.mark.parametrize(
    ("torch_for_cpu", "gpu_driver", "expected"),
    [(True, False, True), (True, True, True), (False, False, True), (False, True, False)],
)
def test_cpu_only_without_a_gpu_that_torch_can_use(
    monkeypatch, torch_for_cpu, gpu_driver, expected
):
    """A GPU counts only with a driver and a torch that was built for it."""
    monkeypatch.setattr(defaults, "_is_torch_built_for_cpu", lambda: torch_for_cpu)
    monkeypatch.setattr(defaults, "_has_gpu_driver", lambda: gpu_driver)
    assert is_cpu_only() is expected


@pytest.mark.parametrize(("chosen", "expected"), [("1", True), ("0", False)])
def test_the_variable_decides_when_set(monkeypatch, chosen, expected):
    """The user's choice of engine goes before anything that is found on the machine."""
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", chosen)
    monkeypatch.setattr(defaults, "_is_torch_built_for_cpu", lambda: not expected)
    assert is_cpu_only() is expected


def test_a_driver_needs_both_device_and_library(monkeypatch, tmp_path):
    """A libcuda without a device, as in many container images, is no GPU."""
    monkeypatch.setattr(defaults, "_DEVICES", tmp_path)
    monkeypatch.setattr(defaults, "_loads", lambda _library: True)
    assert not defaults._has_gpu_driver()
    (tmp_path / "nvidia0").touch()
    assert defaults._has_gpu_driver()
    monkeypatch.setattr(defaults, "_loads", lambda _library: False)
    assert not defaults._has_gpu_driver()
    (tmp_path / "kfd").touch()  # AMD's, which has no libcuda
    assert defaults._has_gpu_driver()


def test_every_default_is_given_when_the_user_says_nothing():
    """The bare launcher gets a complete CPU configuration."""
    arguments = cpu_server_defaults([])
    assert arguments[:4] == ["--device", "cpu", "--attention-backend", "torch_native"]
    assert "--sleep-on-idle" in arguments
    assert arguments[arguments.index("--max-total-tokens") + 1] == "32768"


@pytest.mark.parametrize(
    "given",
    [["--max-total-tokens", "9"], ["--max-total-tokens=9"], ["--max-total", "9"]],
)
def test_a_flag_of_the_user_is_never_repeated(given):
    """However it was spelled, the user's value stays the only one."""
    assert "--max-total-tokens" not in cpu_server_defaults(given)


def test_values_are_not_taken_for_flags():
    """Only arguments that begin with two dashes name a flag."""
    assert cpu_server_defaults(["--model-path", "device", "--", "-x"]) == cpu_server_defaults([])


def test_the_hub_is_switched_off_for_a_local_model_only(tmp_path):
    """A folder needs no hub; a hub name does."""
    assert cpu_environment(str(tmp_path))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in cpu_environment("org/model")
    assert "HF_HUB_OFFLINE" not in cpu_environment()
    assert cpu_environment()["SGLANG_USE_CPU_ENGINE"] == "1"


@pytest.mark.parametrize(
    ("num_cores", "num_ranks", "expected"),
    [(4, 2, "0,1|2,3"), (5, 2, "0,1|2,3"), (2, 2, "0|1"), (1, 3, "0|0|0"), (2, 3, "0|1|0")],
)
def test_ranks_get_equally_many_cores(num_cores, num_ranks, expected):
    """No rank has fewer cores than another; too few cores are shared."""
    assert cores_by_rank(range(num_cores), num_ranks) == expected


def test_several_ranks_share_the_cores_of_the_process(monkeypatch):
    """Cores that the process may not use are nobody's; a single rank is left to SGLang."""
    monkeypatch.setattr(defaults.os, "sched_getaffinity", lambda _pid: {7, 4, 5, 6})
    environment = cpu_environment(num_ranks=2)
    assert environment["SGLANG_CPU_OMP_THREADS_BIND"] == "4,5|6,7"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert not {"SGLANG_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"} & cpu_environment().keys()


def test_a_crash_is_not_prolonged_for_a_gpu():
    """SGLang ends at once instead of waiting a minute for core dumps that only a GPU makes."""
    assert cpu_environment()["SGLANG_CUDA_COREDUMP_BEFORE_CRASH"] == "0"
