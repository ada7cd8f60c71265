"""FlowPrefill for SGLang: operator-level prefill preemption with SLO-aware scheduling.

Importing this package loads neither torch nor sglang. ``enable()`` turns the installed plugin
on for this process and every process that it starts; ``python -m
sglang_flowprefill.launch_server`` does that for a whole server.
"""

from sglang_flowprefill.config import FlowPrefillConfig
from sglang_flowprefill.enablement import enable, is_enabled
from sglang_flowprefill.errors import FlowPrefillError

__all__ = ["FlowPrefillConfig", "FlowPrefillError", "__version__", "enable", "is_enabled"]

__version__ = "0.1.0"
