"""The SLO of a request as callers state it: headers, body fields, classes, errors.

Sees ``core`` only, so that clients, the tokenizer process and tests can use it without an engine.
"""

from sglang_flowprefill.api.class_file import load_slo_classes
from sglang_flowprefill.api.classes import SloClass, SloClasses
from sglang_flowprefill.api.http import SloMiddleware
from sglang_flowprefill.api.matching import MatchRule
from sglang_flowprefill.api.overload import Rejection, reject, rejection_in
from sglang_flowprefill.api.slo import HeaderSlo, SloResolver

__all__ = [
    "HeaderSlo",
    "MatchRule",
    "Rejection",
    "SloClass",
    "SloClasses",
    "SloMiddleware",
    "SloResolver",
    "load_slo_classes",
    "reject",
    "rejection_in",
]
