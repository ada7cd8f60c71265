"""The checks of ``doctor`` that need SGLang: each with what it is there to find."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from sglang.srt.layers.layernorm import LayerNorm
from torch import nn

from sglang_flowprefill.adapter import compat, doctor
from sglang_flowprefill.adapter.model import bare_model
from sglang_flowprefill.adapter.serving.profile import StoredProfile, machine_key
from sglang_flowprefill.checks import Status
from sglang_flowprefill.config import FlowPrefillConfig
from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.executor import PrefillShape, ProfileSample

TIMEOUT_S = 240.0


def settings_of(**ours):
    """Return what the checks read of SGLang's settings."""
    return SimpleNamespace(model_path="a-model", tp_size=1, _flowprefill=FlowPrefillConfig(**ours))


def test_drifted_symbols_are_listed_and_the_others_are_not():
    """One row that is gone fails the check by its name; the whole table holds here."""
    gone = compat.UpstreamSymbol("managers.scheduler.Scheduler.no_such_method", "scheduler.py", "")
    finding = doctor.check_symbols((compat.UPSTREAM[0], gone))
    assert finding.status is Status.FAIL
    assert "1 of 2 differ" in finding.found
    assert "no_such_method" in finding.found
    assert doctor.check_symbols().status is Status.OK


def test_an_sglang_that_cannot_be_imported_is_a_finding(monkeypatch):
    """Not a traceback of the doctor."""

    def fail_to_import(_row):
        raise RuntimeError("no libcuda")

    monkeypatch.setattr(compat, "mismatch", fail_to_import)
    finding = doctor.check_symbols()
    assert finding.status is Status.FAIL
    assert "cannot be imported: RuntimeError: no libcuda" in finding.found


def test_a_foreign_scheduler_fails_with_the_reason(monkeypatch):
    """The same text with which a server would refuse to start."""

    def refuse():
        raise SystemExit("flowprefill: error: SGLang would run its stock scheduler (x.Y)")

    monkeypatch.setattr(doctor, "require_flowprefill_scheduler", refuse)
    finding = doctor.check_scheduler()
    assert finding.status is Status.FAIL
    assert finding.found == "SGLang would run its stock scheduler (x.Y)"


def test_a_scheduler_that_cannot_be_loaded_is_a_finding(monkeypatch):
    """Another plugin's error is not a traceback of the doctor."""

    def fail_to_load():
        raise RuntimeError("their plugin")

    monkeypatch.setattr(doctor, "require_flowprefill_scheduler", fail_to_load)
    finding = doctor.check_scheduler()
    assert finding.status is Status.FAIL
    assert "RuntimeError: their plugin" in finding.found


@pytest.fixture
def model(monkeypatch):
    """Pretend that the model is this one, of two layers."""

    def pretend(module, **facts):
        usual = {"is_generation": True, "is_multimodal": False, "is_encoder_decoder": False}
        config = SimpleNamespace(
            model_path="a-model",
            num_hidden_layers=2,
            hf_config=SimpleNamespace(architectures=["AModel"]),
            **usual | facts,
        )

        def build(_settings, _config):
            if isinstance(module, Exception):
                raise module
            return module

        monkeypatch.setattr(bare_model, "model_config", lambda _settings: config)
        monkeypatch.setattr(bare_model, "bare_model", build)

    return pretend


def layers(num_norms):
    """Return a model of two layers with so many operators each."""
    block = [nn.ModuleDict({f"n{i}": LayerNorm(8) for i in range(num_norms)}) for _ in range(2)]
    return nn.ModuleDict({"layers": nn.ModuleList(block)})


def test_boundaries_are_counted_and_too_few_fail(model):
    """Five a layer are enough; fewer are refused, as the server would."""
    model(layers(5))
    good = doctor.check_model(settings_of())
    assert good.status is Status.OK
    assert "10 boundaries in 2 layers (5.0 a layer; operators: 10 norm)" in good.found
    model(layers(2))
    bad = doctor.check_model(settings_of())
    assert bad.status is Status.FAIL
    assert "only 4 operator boundaries" in bad.found
    assert doctor.check_model(settings_of(granularity="layer")).status is Status.OK


def test_a_refused_family_fails_before_anything_is_built(model):
    """Its name says why."""
    model(AssertionError("built"), is_multimodal=True)
    finding = doctor.check_model(settings_of())
    assert finding.status is Status.FAIL
    assert "a multimodal model" in finding.found


def test_a_model_that_cannot_be_built_is_a_warning(model):
    """Not known is not the same as bad: the server counts itself."""
    model(RuntimeError("needs a GPU"))
    finding = doctor.check_model(settings_of())
    assert finding.status is Status.WARN
    assert "needs a GPU" in finding.found


TRUE = PrefillCost(0.02, 1e-3, 1e-7, per_request_s=0.003)
SHAPES = [*map(PrefillShape, (16, 64, 256, 1024)), PrefillShape(64, 1024), PrefillShape(16, 0, 8)]


def write_profile(path, *, format_version=3, **key):
    """Write a profile of this machine for ``a-model``."""
    usual = {"model": "a-model", "kernels": "avx2-1", "num_ranks": "1", **machine_key()}
    samples = [ProfileSample(s, ProfileSample(s, 1.0).predicted_s(TRUE)) for s in SHAPES]
    stored = StoredProfile(format_version, usual | key, samples, {"norm": 1e-6})
    path.write_bytes(msgspec.json.encode(stored))


def test_the_profile_of_this_model_and_machine_is_found(tmp_path):
    """With its age and how well it fits; one of other kernels is not taken for it."""
    settings = settings_of(profile_cache_dir=str(tmp_path))
    write_profile(tmp_path / "prefill-1.json", kernels="torch")
    missing = doctor.check_predictor(settings, "avx2-1")
    assert missing.status is Status.WARN
    assert "none of 1 profiles" in missing.found
    write_profile(tmp_path / "prefill-2.json")
    found = doctor.check_predictor(settings, "avx2-1")
    assert found.status is Status.OK
    assert "prefill-2.json, 0.0 days old, 6 kinds of prefills, fit within 0%" in found.found


def test_old_and_broken_profiles_are_warnings(tmp_path):
    """Both are measured again by the next start."""
    settings = settings_of(profile_cache_dir=str(tmp_path))
    write_profile(tmp_path / "prefill-1.json", format_version=1)
    assert "out of date" in doctor.check_predictor(settings, "avx2-1").found
    write_profile(tmp_path / "prefill-1.json")
    (tmp_path / "prefill-2.json").write_text("{")
    finding = doctor.check_predictor(settings, "avx2-1")
    assert finding.status is Status.WARN
    assert "unreadable: prefill-2.json" in finding.found


def test_tested_packages_are_those_of_the_lock():
    """``compat.TESTED_PACKAGES`` says what CI installs."""
    lock = (Path(__file__).parents[2] / "requirements/cpu.txt").read_text()
    for name, version in compat.TESTED_PACKAGES.items():
        assert any(line.partition("+")[0] == f"{name}=={version}" for line in lock.splitlines())


def run_doctor(*flags, **variables):
    """Run the real command; return its exit status and the checks by name."""
    result = subprocess.run(
        [sys.executable, "-m", "sglang_flowprefill", "doctor", "--json", *flags],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    record = json.loads(result.stdout)
    return result.returncode, {check["check"]: check for check in record["checks"]}


@pytest.mark.server
def test_the_command_finds_this_installation_in_order():
    """Exit status 0 for the embedded model, whose boundaries it counts without its weights."""
    status, checks = run_doctor("--dtype", "float32", "--tp", "2")
    assert status == 0, checks
    assert "LlamaForCausalLM: 212 boundaries in 30 layers" in checks["model"]["found"]
    assert checks["scheduler"]["status"] == "ok"
    assert "tp 2" in checks["flags"]["found"]


@pytest.mark.server
def test_the_command_names_each_refused_flag():
    """Exit status 1; what depends on a good command line says that it was not looked at."""
    flags = ("--enable-lora", "--nnodes", "2")
    status, checks = run_doctor(*flags, SGLANG_FLOWPREFILL="2")
    assert status == 1
    assert checks["plugin"]["status"] == "fail"
    assert "--enable-lora True: " in checks["flags"]["found"]
    assert "--nnodes 2: " in checks["flags"]["found"]
    assert "not checked" in checks["model"]["found"]


@pytest.mark.server
def test_the_command_tells_a_misspelt_flag():
    """In SGLang's own words."""
    status, checks = run_doctor("--flowprefill-polizy", "fcfs")
    assert status == 1
    assert "--flowprefill-polizy" in checks["flags"]["found"]
