"""Settings: defaults, ranges, types, variables."""

import math
import os
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

import sglang_flowprefill
from sglang_flowprefill.config import (
    FlowPrefillConfig,
    flag_of,
    parse_setting,
)
from sglang_flowprefill.core import POLICIES
from sglang_flowprefill.errors import ConfigError


def from_variables(**variables):
    """Build the settings of a process with these variables, prefix left out."""
    environment = {f"SGLANG_FLOWPREFILL_{name.upper()}": text for name, text in variables.items()}
    return FlowPrefillConfig.from_environment({"PATH": "/bin", **environment})


def test_defaults_are_valid_and_what_an_empty_environment_gives():
    """Nobody has to set anything."""
    assert FlowPrefillConfig.from_environment({}) == FlowPrefillConfig()


def test_every_setting_explains_itself():
    """The help text of each is what the command line shows."""
    assert all(spec.metadata["help"].endswith(".") for spec in fields(FlowPrefillConfig))


def test_every_policy_of_the_core_can_be_chosen():
    """The names that the command line offers, each with its help."""
    (setting,) = (spec for spec in fields(FlowPrefillConfig) if spec.name == "policy")
    for name, policy in POLICIES.items():
        assert FlowPrefillConfig(policy=name).policy == policy.name == name
        assert f"{name} ({policy.summary})" in setting.metadata["help"]


LIFO = """
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Lifo:
    name: ClassVar[str] = "lifo"
    summary: ClassVar[str] = "latest arrival first"

    starvation_factor: float = 1.0
    may_preempt: bool = True
    lent_share: float = 0.0

    def key(self, candidate, now_s):
        return (-candidate.arrival_s,)
"""

USE_LIFO = """
from sglang_flowprefill.config import FlowPrefillConfig
from sglang_flowprefill.core import PolicyOptions, make_policy

print(make_policy(FlowPrefillConfig(policy="lifo").policy, PolicyOptions(7.0)))
"""


def test_a_new_policy_is_one_file(tmp_path):
    """It can be chosen, takes its options and is in the help, with no other line changed."""
    package = Path(sglang_flowprefill.__file__).parent
    copy = tmp_path / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "adapter", "sim"))
    (copy / "core" / "policies" / "lifo.py").write_text(LIFO)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", USE_LIFO],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Lifo(starvation_factor=7.0, may_preempt=True, lent_share=0.0)"


def test_settings_cannot_be_changed():
    """What was validated stays validated."""
    with pytest.raises(FrozenInstanceError):
        FlowPrefillConfig().policy = "fcfs"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("policy", "fcfs", "fcfs"),
        ("default_ttft_slo_ms", "250", 250.0),
        ("default_ttft_slo_ms", "2.5e2", 250.0),
        ("max_batch_tokens", "4096", 4096),
        ("max_suspended", " 3 ", 3),
        ("min_preemption_gain_ms", "0", 0.0),
        ("slo_config", "slo.yaml", "slo.yaml"),
        ("check_cursors", "1", True),
        ("check_cursors", "True", True),
        ("check_cursors", "0", False),
        ("check_cursors", "false", False),
    ],
)
def test_variables_are_read_as_the_type_of_their_setting(name, text, value):
    """Text becomes a number or a switch where the setting is one."""
    found = getattr(from_variables(**{name: text}), name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("max_suspended", "many", "int"),
        ("max_suspended", "3.5", "int"),
        ("max_suspended", "", "int"),
        ("max_batch_tokens", "None", "int"),
        ("default_ttft_slo_ms", "1s", "float"),
        ("check_cursors", "yes", "bool"),
    ],
)
def test_text_of_the_wrong_type_names_the_variable(name, text, kind):
    """The user is told which variable to correct, and to what."""
    with pytest.raises(ConfigError, match=f"expected a value of type {kind}") as caught:
        from_variables(**{name: text})
    assert caught.value.setting == f"SGLANG_FLOWPREFILL_{name.upper()}"
    assert caught.value.value == text


def test_a_misspelt_variable_is_an_error():
    """Otherwise its setting would stay at the default in silence."""
    with pytest.raises(ConfigError, match="SGLANG_FLOWPREFILL_MAX_SUSPENDD: no such setting"):
        from_variables(max_suspendd="3")


@pytest.mark.parametrize("variable", ["SGLANG_FLOWPREFILL", "SGLANG_FLOWPREFILL_CACHE", "SGLANG_X"])
def test_variables_with_another_meaning_are_left_alone(variable):
    """The switch, the cache folder and SGLang's own."""
    assert FlowPrefillConfig.from_environment({variable: "x"}) == FlowPrefillConfig()


@pytest.mark.parametrize(
    "setting",
    [
        {"policy": "lifo"},
        {"policy": ""},
        {"default_ttft_slo_ms": 0.5},
        {"default_ttft_slo_ms": -1.0},
        {"default_ttft_slo_ms": math.nan},
        {"default_ttft_slo_ms": math.inf},
        {"tpot_slo_ms": 0.0},
        {"max_batch_tokens": 0},
        {"max_suspended": 0},
        {"max_suspended": -1},
        {"min_preemption_gain_ms": -0.1},
        {"starvation_factor": 0.9},
        {"starvation_factor": math.nan},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(setting):
    """The message starts with the flag at fault."""
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError) as caught:
        FlowPrefillConfig(**setting)
    assert str(caught.value).startswith(f"{flag_of(name)}: ")
    assert caught.value.value is value


@pytest.mark.parametrize(
    "setting",
    [
        {"policy": None},
        {"policy": ["fcfs"]},
        {"default_ttft_slo_ms": "250"},
        {"default_ttft_slo_ms": True},
        {"max_suspended": 2.0},
        {"max_suspended": True},
        {"slo_config": 3},
        {"check_cursors": "no"},
        {"check_cursors": 1},
    ],
    ids=str,
)
def test_values_of_the_wrong_type_are_refused(setting):
    """Programs that build the settings themselves get the same error as the command line."""
    with pytest.raises(ConfigError, match="expected a value of type"):
        FlowPrefillConfig(**setting)


def test_a_whole_number_may_stand_for_a_float():
    """``tpot_slo_ms=50`` is not a mistake."""
    assert FlowPrefillConfig(tpot_slo_ms=50).tpot_slo_ms == 50


def test_origin_is_named_where_a_flag_is_parsed():
    """The same conversion serves flags and variables."""
    with pytest.raises(ConfigError, match="--flowprefill-max-suspended: expected"):
        parse_setting("max_suspended", "x", flag_of("max_suspended"))
