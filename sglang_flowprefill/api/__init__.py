"""The SLO of a request as callers state it: headers, body fields, classes, errors.

Sees ``core`` only, so that clients, the tokenizer process and tests can use it without an engine.
"""

from sglang_flowprefill.api.http import SloMiddleware
from sglang_flowprefill.api.slo import HeaderSlo, SloClasses, SloResolver, load_slo_classes

__all__ = ["HeaderSlo", "SloClasses", "SloMiddleware", "SloResolver", "load_slo_classes"]
