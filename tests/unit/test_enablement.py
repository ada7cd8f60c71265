"""The on/off switch."""

import pytest

from sglang_flowprefill import enable, is_enabled
from sglang_flowprefill.enablement import is_kernels_only


@pytest.mark.parametrize("text", ["1", "true", "TRUE", " yes ", "on"])
def test_on(text):
    """Any of the usual words switches it on."""
    assert is_enabled({"SGLANG_FLOWPREFILL": text})


@pytest.mark.parametrize(
    "environment",
    [
        {},
        *({"SGLANG_FLOWPREFILL": text} for text in ["", "0", "false", "off", "no", "2", "kernels"]),
    ],
    ids=str,
)
def test_off_unless_switched_on(environment):
    """Installed but not enabled is stock SGLang."""
    assert not is_enabled(environment)


@pytest.mark.parametrize("text", ["", "1", "on", "kernel", "kernels,1"])
def test_kernels_alone_are_asked_for_in_one_word(text):
    """Nothing else brings in the kernels without the scheduler."""
    assert is_kernels_only({"SGLANG_FLOWPREFILL": " Kernels "})
    assert not is_kernels_only({"SGLANG_FLOWPREFILL": text})


def test_enabling_sets_what_child_processes_inherit():
    """The switch, and the variable without which a suspended prefill would read foreign tokens."""
    environment = {"SGLANG_EAGER_INPUT_NO_COPY": "0", "PATH": "/bin"}
    enable(environment)
    assert is_enabled(environment)
    assert environment["SGLANG_EAGER_INPUT_NO_COPY"] == "1"
    assert environment["PATH"] == "/bin"
