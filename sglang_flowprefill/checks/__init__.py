"""Checks of an installation that need no SGLang, and what a check says.

``python -m sglang_flowprefill doctor`` runs them. A check returns a ``Finding`` and never raises
for what it looks for; those that must import SGLang are in ``adapter/doctor.py``.
"""

from sglang_flowprefill.checks.finding import Finding, Status, fail, ok, warn

__all__ = ["Finding", "Status", "fail", "ok", "warn"]
