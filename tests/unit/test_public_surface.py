"""What users of the package may rely on, and that its examples are true."""

import doctest
import importlib
import inspect
import re
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import sglang_flowprefill
from sglang_flowprefill import errors

PACKAGE = Path(sglang_flowprefill.__file__).parent


def modules_with_examples():
    """Name every module with a doctest; the adapter's would need an engine."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8") and "adapter" not in path.parts:
            yield ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts))


def test_public_names():
    """Adding or removing one is a decision, not an accident."""
    assert sglang_flowprefill.__all__ == [
        "FlowPrefillConfig",
        "FlowPrefillError",
        "__version__",
        "enable",
        "is_enabled",
    ]


@pytest.mark.parametrize("package", ["core", "executor", "api", "sim"])
def test_every_export_exists(package):
    """Nothing in ``__all__`` is missing or listed twice."""
    module = importlib.import_module(f"sglang_flowprefill.{package}")
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_version_is_that_of_the_distribution():
    """``__version__`` and the package's metadata agree."""
    assert sglang_flowprefill.__version__ == version("sglang-flowprefill")


def test_sglang_finds_the_plugin():
    """The entry point by which SGLang loads us is installed."""
    (plugin,) = entry_points(group="sglang.srt.plugins", name="flowprefill")
    assert plugin.value == "sglang_flowprefill.adapter.plugin:register"


def test_every_error_is_ours_and_stands_in_the_tree():
    """One base class, and a drawing at the top of ``errors.py`` of classes that exist."""
    classes = dict(inspect.getmembers(errors, inspect.isclass))
    drawn = re.findall(r"^(?:[├└]── )?(\w+Error)\b", errors.__doc__, flags=re.MULTILINE)
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    defined = re.findall(r"^class (\w+Error)\(", source, flags=re.MULTILINE)
    assert all(issubclass(cls, errors.FlowPrefillError) for cls in classes.values())
    assert len(set(drawn)) == len(drawn)
    assert set(classes) <= set(drawn) <= set(defined)


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_in_docstrings_run(name):
    """What a docstring shows is what happens."""
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted
    assert not failed
