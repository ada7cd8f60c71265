"""Scheduling policy: which prefill runs next, and why.

Standard library only; no clock, no I/O, no threads, no logging. The same code decides in the
server, in the simulator (``sim/``) and in the property tests: ``PrefillDecider.decide(view,
now_s)`` takes plain data and returns plain data.

Words: a *request* is one prompt; a *batch* is one or more requests whose prefill runs as one
forward pass (one operator cursor in the executor); a *round* is one call of ``decide``.
"""

from sglang_flowprefill.core.admission import (
    AdmissionControl,
    AdmissionDecision,
    Admit,
    Degrade,
    Reject,
)
from sglang_flowprefill.core.backlog import Backlog
from sglang_flowprefill.core.batch import BatchState, PrefillBatch
from sglang_flowprefill.core.calibrated_decider import CalibratedDecider
from sglang_flowprefill.core.calibration import (
    Calibration,
    JudgedPrediction,
    Observation,
    PredictionError,
)
from sglang_flowprefill.core.decider import PrefillDecider
from sglang_flowprefill.core.decision import (
    Decision,
    DropBatches,
    ResumeBatch,
    RunDecode,
    StartBatch,
    Wait,
)
from sglang_flowprefill.core.decode import DecodePacing, DecodeView, RunningRequest
from sglang_flowprefill.core.distortion import Distortion
from sglang_flowprefill.core.events import Event, EventKind
from sglang_flowprefill.core.memory import Release
from sglang_flowprefill.core.policies import (
    POLICIES,
    DegradedLast,
    Edf,
    Fcfs,
    Hrrn,
    PolicyOptions,
    SEdf,
    SEdfPaper,
    Sjf,
    make_policy,
)
from sglang_flowprefill.core.policy import Candidate, Policy
from sglang_flowprefill.core.predictor import PrefillCost
from sglang_flowprefill.core.request import PrefillRequest, Slo
from sglang_flowprefill.core.stats import ClassAttainment, LoopStatistics, StatisticsRecorder
from sglang_flowprefill.core.view import BlockedRequest, RoundView

__all__ = [
    "POLICIES",
    "AdmissionControl",
    "AdmissionDecision",
    "Admit",
    "Backlog",
    "BatchState",
    "BlockedRequest",
    "CalibratedDecider",
    "Calibration",
    "Candidate",
    "ClassAttainment",
    "Decision",
    "DecodePacing",
    "DecodeView",
    "Degrade",
    "DegradedLast",
    "Distortion",
    "DropBatches",
    "Edf",
    "Event",
    "EventKind",
    "Fcfs",
    "Hrrn",
    "JudgedPrediction",
    "LoopStatistics",
    "Observation",
    "Policy",
    "PolicyOptions",
    "PredictionError",
    "PrefillBatch",
    "PrefillCost",
    "PrefillDecider",
    "PrefillRequest",
    "Reject",
    "Release",
    "ResumeBatch",
    "RoundView",
    "RunDecode",
    "RunningRequest",
    "SEdf",
    "SEdfPaper",
    "Sjf",
    "Slo",
    "StartBatch",
    "StatisticsRecorder",
    "Wait",
    "make_policy",
]
