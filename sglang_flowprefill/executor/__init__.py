"""Preemptible execution of a forward pass. torch and greenlet; never sglang.

A forward pass runs inside an *operator cursor*: a greenlet on the scheduler's own thread. At
every *boundary* (just before an operator, or between two tiles of one) the cursor asks whether
somebody wants the machine; if so it switches back to the scheduler, its Python stack standing
exactly there. Resuming it continues with the next operator. Nothing is recomputed.
"""

from sglang_flowprefill.executor.checkpoint import Checkpoint
from sglang_flowprefill.executor.cursor import Cursor, SwitchState
from sglang_flowprefill.executor.operators import (
    OperatorBoundary,
    install_boundaries,
    remove_boundaries,
)
from sglang_flowprefill.executor.profile import ProfileSample, fit_prefill_cost

__all__ = [
    "Checkpoint",
    "Cursor",
    "OperatorBoundary",
    "ProfileSample",
    "SwitchState",
    "fit_prefill_cost",
    "install_boundaries",
    "remove_boundaries",
]
