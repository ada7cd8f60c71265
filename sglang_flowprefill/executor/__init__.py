"""Preemptible execution of a forward pass. torch and greenlet; never sglang.

A forward pass runs inside an *operator cursor*: a greenlet on the scheduler's own thread. At
every *boundary* (just before an operator, or between two tiles of one) the cursor asks whether
somebody wants the machine; if so it switches back to the scheduler, its Python stack standing
exactly there. Resuming it continues with the next operator. Nothing is recomputed.
"""

from sglang_flowprefill.executor.checkpoint import Checkpoint, no_boundary
from sglang_flowprefill.executor.cursor import Cursor, SwitchState
from sglang_flowprefill.executor.devices import device_named
from sglang_flowprefill.executor.operators import (
    Operator,
    family_of,
    find_operators,
    first_of_each_layer,
    halves_of_each_layer,
    install_boundaries,
    uncovered_modules,
)
from sglang_flowprefill.executor.profile import (
    PrefillShape,
    ProfileSample,
    fit_prefill_cost,
    saturation_tokens,
)
from sglang_flowprefill.executor.ranks import Ranks
from sglang_flowprefill.executor.run_ahead import RunAhead
from sglang_flowprefill.executor.stoppable import StoppableWork
from sglang_flowprefill.executor.tiling import RowTiling

__all__ = [
    "Checkpoint",
    "Cursor",
    "Operator",
    "PrefillShape",
    "ProfileSample",
    "Ranks",
    "RowTiling",
    "RunAhead",
    "StoppableWork",
    "SwitchState",
    "device_named",
    "family_of",
    "find_operators",
    "first_of_each_layer",
    "fit_prefill_cost",
    "halves_of_each_layer",
    "install_boundaries",
    "no_boundary",
    "saturation_tokens",
    "uncovered_modules",
]
