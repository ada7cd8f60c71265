"""The table of live attributes names what the source touches, and says so when one is gone."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

import sglang_flowprefill.adapter as adapter_package
from sglang_flowprefill.adapter import attributes
from sglang_flowprefill.adapter.attributes import (
    ATTRIBUTES,
    BATCH,
    MODEL_RUNNER,
    REQUEST,
    SCHEDULER,
    require_attributes,
)
from sglang_flowprefill.errors import UnsupportedSGLangError

ADAPTER = Path(adapter_package.__file__).parent
OWNER_BY_NAME = {
    "scheduler": SCHEDULER,
    "_scheduler": SCHEDULER,
    "req": REQUEST,
    "rest": REQUEST,
    "chunked_req": REQUEST,
    "batch": BATCH,
    "schedule_batch": BATCH,
    "running_batch": BATCH,
    "model_runner": MODEL_RUNNER,
    "_model_runner": MODEL_RUNNER,
}
"""What a variable or attribute of this name holds, everywhere in the adapter."""

OURS = {
    SCHEDULER: {"memory_claims", "slo_resolver"},
    REQUEST: set(),
    BATCH: {"run_s"},  # of the policy's account, which is called batch too
    MODEL_RUNNER: set(),
}
"""Attributes of ours on objects under these names."""


def owner_of(node):
    """Return whose attribute is taken, as far as the names tell."""
    name = getattr(node, "id", None) or getattr(node, "attr", None)
    return OWNER_BY_NAME.get(name)


def touched():
    """Return the attributes that the source reads or writes, by owner."""
    found = {owner: set() for owner in ATTRIBUTES}
    for folder in ("serving", "model"):
        for path in (ADAPTER / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and (owner := owner_of(node.value)):
                    found[owner].add(node.attr)
    source = (ADAPTER / "unsupported.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and owner_of(node.value) == SCHEDULER:
            found[SCHEDULER].add(node.attr)
    return {owner: names - OURS[owner] for owner, names in found.items()}


@pytest.mark.parametrize("owner", ATTRIBUTES)
def test_every_attribute_that_the_source_touches_has_a_row(owner):
    """A new one needs a word on what for; then start-up checks it."""
    assert touched()[owner] <= ATTRIBUTES[owner].keys()


def test_no_row_is_left_of_what_nothing_touches():
    """The table shrinks with the seam; what an override takes from itself is listed here."""
    by_override = {"load_inquirer", "tp_group"}
    for owner, names in touched().items():
        rows = {name for name in ATTRIBUTES[owner] if "." not in name}
        assert rows - names <= by_override, owner


def test_a_renamed_attribute_stops_the_start_with_its_name():
    """Before anything is served, and with what to do."""
    names = dict.fromkeys(ATTRIBUTES[BATCH])
    require_attributes(BATCH, SimpleNamespace(**names))
    del names["reqs"]
    with pytest.raises(UnsupportedSGLangError, match="ScheduleBatch has no reqs"):
        require_attributes(BATCH, SimpleNamespace(**names))


def test_a_part_that_lost_an_attribute_is_noticed_too():
    """Dotted rows look into the attribute."""
    assert attributes._has(SimpleNamespace(kv=SimpleNamespace(kv_allocated_len=1)), "kv")
    assert not attributes._has(SimpleNamespace(kv=SimpleNamespace()), "kv.kv_allocated_len")
