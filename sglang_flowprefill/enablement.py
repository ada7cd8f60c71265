"""The on/off switch: one environment variable, so that spawned processes inherit it.

SGLang loads every installed plugin in every process. Ours does nothing at all unless this
variable is set, which is what makes "installed but not enabled" equal to stock SGLang. Set to
``kernels`` it leaves SGLang's scheduler alone and brings in nothing but our CPU kernels.
"""

import os
from collections.abc import MutableMapping

ENABLE_VARIABLE = "SGLANG_FLOWPREFILL"
PLUGIN_NAME = "flowprefill"
"""Our entry points' name, by which SGLANG_PLUGINS may let plugins in."""

KERNELS_ONLY = "kernels"
"""Value of the variable for our CPU kernels under SGLang's own scheduler."""

_TRUE = frozenset({"1", "true", "yes", "on"})


def is_enabled(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Tell whether FlowPrefill is switched on for this process."""
    return _value(environment) in _TRUE


def is_kernels_only(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Tell whether SGLang shall stay stock but for the CPU kernels.

    >>> is_kernels_only({"SGLANG_FLOWPREFILL": "kernels"})
    True
    """
    return _value(environment) == KERNELS_ONLY


def is_plugin_allowed(allowed: str) -> bool:
    """Tell whether SGLang would load our plugin, given the value of ``SGLANG_PLUGINS``.

    >>> is_plugin_allowed("other, flowprefill"), is_plugin_allowed(""), is_plugin_allowed("other")
    (True, True, False)
    """
    return not allowed or PLUGIN_NAME in [name.strip() for name in allowed.split(",")]


def enable(environment: MutableMapping[str, str] = os.environ) -> None:
    """Switch FlowPrefill on for this process and its children.

    Call it before ``sglang.Engine(...)`` is built; a running engine is not affected.

    >>> env = {}
    >>> enable(env)
    >>> is_enabled(env)
    True
    """
    environment[ENABLE_VARIABLE] = "1"
    # Static input buffers are shared by every eager forward of a process; a suspended prefill
    # would read another batch's tokens from them. SGLang reads this on each forward.
    environment["SGLANG_EAGER_INPUT_NO_COPY"] = "1"


def _value(environment: MutableMapping[str, str]) -> str:
    return environment.get(ENABLE_VARIABLE, "").strip().lower()
