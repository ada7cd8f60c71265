"""Every message that SGLang dispatches is one that we have thought about."""

import ast
import inspect
import textwrap

from sglang.srt.managers.scheduler import Scheduler

from sglang_flowprefill.adapter.serving.messages import BESIDE_SUSPENDED, NEEDS_QUIET


def dispatched_messages():
    """Return the names of the classes in the scheduler's dispatcher."""
    source = textwrap.dedent(inspect.getsource(Scheduler.init_request_dispatcher))
    (table,) = (
        node.args[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "TypeBasedDispatcher"
    )
    return {pair.elts[0].id for pair in table.elts}


def test_every_dispatched_message_is_classified_once():
    """A message of a newer SGLang drains the engine until somebody has read what it does."""
    assert BESIDE_SUSPENDED.keys() | NEEDS_QUIET.keys() == dispatched_messages()
    assert not BESIDE_SUSPENDED.keys() & NEEDS_QUIET.keys()


def test_only_what_may_write_or_needs_an_empty_engine_drains():
    """No call that any client may make is among them."""
    open_to_clients = {"OpenSessionReqInput", "CloseSessionReqInput", "GetWeightsByNameReqInput"}
    assert open_to_clients <= BESIDE_SUSPENDED.keys()
    assert not {name for name in NEEDS_QUIET if name.startswith(("Get", "List"))}
