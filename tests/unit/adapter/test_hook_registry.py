"""Our own hooks, for a release of SGLang that has no registry."""

import sys
from types import ModuleType

import pytest

from sglang_flowprefill.adapter.releases.hook_registry import HookRegistry, HookType


@pytest.fixture
def target(monkeypatch):
    """A module with a class to hook."""

    class Sums:
        def add(self, a, b):
            return a + b

        @staticmethod
        def double(a):
            return 2 * a

        @classmethod
        def name(cls):
            return cls.__name__

    module = ModuleType("hook_target")
    module.Sums = Sums
    monkeypatch.setitem(sys.modules, "hook_target", module)
    monkeypatch.setattr(HookRegistry, "_registered", set())
    return module


def test_before_sees_the_arguments(target):
    """A BEFORE hook gets the arguments and changes no result."""
    seen = []
    HookRegistry.register(
        "hook_target.Sums.add", lambda _self, a, b: seen.append((a, b)), HookType.BEFORE
    )
    assert target.Sums().add(1, 2) == 3
    assert seen == [(1, 2)]


def test_after_sees_the_result(target):
    """An AFTER hook gets the result before the arguments."""
    seen = []
    HookRegistry.register(
        "hook_target.Sums.double", lambda *args: seen.append(args), HookType.AFTER
    )
    assert target.Sums.double(4) == 8
    assert seen == [(8, 4)]


def test_around_decides(target):
    """An AROUND hook gets the original of a class method and returns what it likes."""
    HookRegistry.register(
        "hook_target.Sums.name", lambda original, cls: original(cls) + "!", HookType.AROUND
    )
    assert target.Sums.name() == "Sums!"


def test_replace_takes_the_place(target):
    """A REPLACE hook is what the name means from then on."""
    HookRegistry.register("hook_target.Sums", int, HookType.REPLACE)
    assert target.Sums is int


def test_registering_twice_hooks_once(target):
    """The same hook on the same target is called once."""
    seen = []
    hook = seen.append
    for _ in range(2):
        HookRegistry.register("hook_target.Sums.double", lambda a, h=hook: h(a), HookType.BEFORE)
        HookRegistry.register("hook_target.Sums.name", hook, HookType.BEFORE)
    target.Sums.name()
    assert len(seen) == 1
