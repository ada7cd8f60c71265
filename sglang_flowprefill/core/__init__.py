"""Scheduling policy: which prefill runs next, and why.

Standard library only; no clock, no I/O, no threads, no logging. The same code decides in the
server, in the simulator (``sim/``) and in the property tests: ``PrefillScheduler.decide(view,
now_s)`` takes plain data and returns plain data.

Words: a *request* is one prompt; a *batch* is one or more requests whose prefill runs as one
forward pass (one operator cursor in the executor); a *round* is one call of ``decide``.
"""

from sglang_flowprefill.core.batch import BatchState, PrefillBatch
from sglang_flowprefill.core.decision import (
    Decision,
    ResumeBatch,
    RunDecode,
    StartBatch,
    Wait,
)
from sglang_flowprefill.core.events import Event, EventKind
from sglang_flowprefill.core.policy import POLICY_TYPES, Candidate, Fcfs, Policy, SEdf
from sglang_flowprefill.core.predictor import PrefillCost
from sglang_flowprefill.core.request import PrefillRequest, Slo
from sglang_flowprefill.core.scheduler import DecodeView, PrefillScheduler, SchedulerView
from sglang_flowprefill.core.stats import ClassAttainment, SchedulerStatistics, StatisticsRecorder

__all__ = [
    "POLICY_TYPES",
    "BatchState",
    "Candidate",
    "ClassAttainment",
    "Decision",
    "DecodeView",
    "Event",
    "EventKind",
    "Fcfs",
    "Policy",
    "PrefillBatch",
    "PrefillCost",
    "PrefillRequest",
    "PrefillScheduler",
    "ResumeBatch",
    "RunDecode",
    "SEdf",
    "SchedulerStatistics",
    "SchedulerView",
    "Slo",
    "StartBatch",
    "StatisticsRecorder",
    "Wait",
]
