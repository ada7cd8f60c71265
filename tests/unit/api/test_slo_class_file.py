"""The YAML file with SLO classes."""

import pytest

from sglang_flowprefill.api import load_slo_classes
from sglang_flowprefill.core import Slo
from sglang_flowprefill.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a file of this text."""

    def load_text(text):
        path = tmp_path / "slo.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_slo_classes(str(path), default_ttft_slo_ms=1500.0)

    return load_text


def test_without_a_file_there_is_only_the_default():
    """No file, no classes."""
    classes = load_slo_classes(None, default_ttft_slo_ms=1500.0)
    assert (classes.ttft_slo_ms, classes.default) == ({}, Slo(1.5, "default"))


def test_classes_and_default(load):
    """The default may be one of the classes."""
    classes = load(
        "classes:\n  chat: {ttft_slo_ms: 250}\n  batch: {ttft_slo_ms: 9.0e+3}\ndefault: chat\n"
    )
    assert classes.ttft_slo_ms == {"chat": 250.0, "batch": 9000.0}
    assert classes.default == Slo(0.25, "chat")


def test_without_a_default_class_the_flag_applies(load):
    """Requests that name no class get the server's own objective."""
    assert load("classes: {chat: {ttft_slo_ms: 250}}").default == Slo(1.5, "default")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a valid SLO class file"),
        ("classes: [", "not a valid SLO class file"),
        (b"\xff\xff\xff", "not a valid SLO class file"),
        ("default: chat", "missing required field `classes`"),
        ("classes: {chat: 250}", "Expected `object`"),
        ("classes: {chat: {}}", "missing required field `ttft_slo_ms`"),
        ("classes: {chat: {ttft_slo_ms: 250, tpot: 5}}", "unknown field `tpot`"),
        ("classes: {}\nclases: {}", "unknown field `clases`"),
        ("classes: {chat: {ttft_slo_ms: '250'}}", "Expected `float`"),
        ("classes: {chat: {ttft_slo_ms: true}}", "Expected `float`"),
        ("classes: {7: {ttft_slo_ms: 250}}", "Expected `str`"),
        ("classes: !!python/object/apply:os.getcwd []", "not a valid SLO class file"),
        ("classes: {chat: {ttft_slo_ms: 0}}", r"classes\.chat\.ttft_slo_ms: must be between"),
        ("classes: {chat: {ttft_slo_ms: -5}}", r"classes\.chat\.ttft_slo_ms: must be between"),
        ("classes: {chat: {ttft_slo_ms: .nan}}", r"classes\.chat\.ttft_slo_ms: must be between"),
        ("classes: {chat: {ttft_slo_ms: .inf}}", r"classes\.chat\.ttft_slo_ms: must be between"),
        ("classes: {chat: {ttft_slo_ms: 5}}\ndefault: bulk", "default: choose one of chat"),
    ],
)
def test_malformed_files_stop_the_start(load, text, message):
    """The message says what is wrong, and with which key where there is one."""
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_missing_file_is_named(tmp_path):
    """A path that cannot be read is a settings error, not a traceback."""
    missing = str(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="No such file") as caught:
        load_slo_classes(missing, 1000.0)
    assert caught.value.value == missing
