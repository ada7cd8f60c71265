"""A request that admission refuses, on its way from the scheduler to an HTTP answer.

The scheduler ends the request with SGLang's own means: an abort whose *finish reason* is a flat
mapping of plain values. SGLang carries it unread to the process that speaks HTTP, where it is
recognised again. ``http.py`` makes the answer of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from sglang_flowprefill.core import Slo

MAX_RETRY_AFTER_S = 3600
"""Nobody can tell the load in an hour, so nobody is asked to wait longer."""

_KIND = "FlowPrefillRejection"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request is refused, and when it is worth sending again.

    Attributes:
        message: For the caller.
        retry_after_s: Whole seconds, at least 1; None if waiting does not help.
    """

    message: str
    retry_after_s: int | None

    @property
    def status(self) -> HTTPStatus:
        """429 if it can be tried again; 400 if the caller must ask for something else."""
        retryable = self.retry_after_s is not None
        return HTTPStatus.TOO_MANY_REQUESTS if retryable else HTTPStatus.BAD_REQUEST

    @property
    def error_type(self) -> str:
        """Name of the error in the body of the answer."""
        return "BadRequestError" if self.retry_after_s is None else "OverloadedError"

    @property
    def finish_reason(self) -> dict[str, Any]:
        """What the scheduler gives SGLang as the reason of the abort."""
        return {
            "type": "abort",
            "message": self.message,
            # An HTTPStatus, not an int: SGLang's streams look for the type.
            "status_code": self.status,
            "err_type": _KIND,
            "retry_after_s": self.retry_after_s,
        }


def reject(reason: str, slo: Slo, retry_after_s: float) -> Rejection:
    """Return the rejection of a request.

    Args:
        reason: Why admission refuses it.
        slo: Its objectives.
        retry_after_s: Seconds until it would be admitted; infinite if never.
    """
    objective = f"its TTFT objective is {slo.ttft_s * 1000.0:g} ms (class {slo.class_name!r})"
    if math.isinf(retry_after_s):
        return Rejection(f"refused: {reason}; {objective}", None)
    seconds = min(max(math.ceil(retry_after_s), 1), MAX_RETRY_AFTER_S)
    return Rejection(f"refused: {reason}; {objective}; try again in {seconds} s", seconds)


def rejection_in(finish_reason: Any) -> Rejection | None:
    """Return the rejection that a finish reason carries, None for every other reason."""
    if not isinstance(finish_reason, Mapping) or finish_reason.get("err_type") != _KIND:
        return None
    return Rejection(finish_reason["message"], finish_reason["retry_after_s"])
