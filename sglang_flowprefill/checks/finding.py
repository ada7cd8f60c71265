"""What a check found, as data: the command shows it, tests compare it."""

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """How good a finding is. Only ``FAIL`` keeps FlowPrefill from serving."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says.

    Attributes:
        check: Name of the check.
        status: How good it is.
        found: What there is, with values.
        advice: What to do; empty where nothing is to be done.
    """

    check: str
    status: Status
    found: str
    advice: str = ""


def ok(check: str, found: str, advice: str = "") -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Status.OK, found, advice)


def warn(check: str, found: str, advice: str) -> Finding:
    """Return a finding that one should know of."""
    return Finding(check, Status.WARN, found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """Return a finding that keeps FlowPrefill from serving."""
    return Finding(check, Status.FAIL, found, advice)
