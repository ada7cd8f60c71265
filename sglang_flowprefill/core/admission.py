"""Admission: what to do with a request, at its arrival, that would come too late anyway.

Under overload somebody misses a deadline; serving the hopeless in turn makes others miss theirs.
Predicted from the queue as it stands: the work of everything that the policy runs first, then the
request's own. Later arrivals may overtake it still, so being admitted is no promise; decode steps
in between are not counted, so the prediction is on the hopeful side.

* ``off``: everybody is admitted.
* ``reject``: a request that is predicted to miss its deadline is refused, with the time after
  which it is worth trying again.
* ``degrade``: it is admitted, and served after all others (``policies/degraded_last.py``).

A full queue refuses in every mode.
"""

import math
from dataclasses import dataclass
from typing import Literal

from sglang_flowprefill.core.backlog import Backlog
from sglang_flowprefill.core.request import PrefillRequest

AdmissionMode = Literal["off", "reject", "degrade"]

_QUEUE_FULL = "the queue is full"
_LATE = "predicted to miss its deadline"
_TOO_LONG = "too long for its deadline on an idle server"
REJECT_REASONS = (_QUEUE_FULL, _LATE, _TOO_LONG)
"""Why a request may be refused."""
DEGRADE_REASONS = (_LATE,)
"""Why a request may be put behind all others."""


@dataclass(frozen=True, slots=True)
class Admit:
    """Serve it in its turn."""

    reason: str = "in time by prediction"


@dataclass(frozen=True, slots=True)
class Degrade:
    """Serve it after all others (``dataclasses.replace(request, is_degraded=True)``)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse it.

    Attributes:
        reason: Why.
        retry_after_s: Seconds until it would be admitted if nobody else came; infinite if it
            would miss its deadline on an idle server too. With a full queue, until the next
            request is expected to leave it.
    """

    reason: str
    retry_after_s: float


AdmissionDecision = Admit | Degrade | Reject


@dataclass(frozen=True, slots=True)
class AdmissionControl:
    """Parameters of admission.

    Attributes:
        mode: See above.
        max_waiting: Requests that may wait at once; None for any number.
        tolerance: A predicted TTFT of up to this multiple of the objective is admitted. Above 1
            for predictions that are known to be on the long side.
    """

    mode: AdmissionMode = "off"
    max_waiting: int | None = None
    tolerance: float = 1.0

    def decide(
        self,
        request: PrefillRequest,
        backlog: Backlog,
        now_s: float,
    ) -> AdmissionDecision:
        """Decide on a newcomer of a backlog that has not been added to it. Changes nothing.

        A request that starts over was admitted before; do not ask again.
        """
        if self.max_waiting is not None and backlog.num_waiting >= self.max_waiting:
            return Reject(_QUEUE_FULL, backlog.turnover_s())
        if self.mode == "off":
            return Admit("admission control is off")
        own_s = backlog.own_s(request)
        end_s = now_s + backlog.wait_s(request) + own_s
        allowed_s = self.tolerance * request.slo.ttft_s
        late_s = end_s - request.arrival_s - allowed_s
        if late_s <= 0.0:
            return Admit()
        if self.mode == "degrade":
            return Degrade(_LATE)
        if own_s > allowed_s:
            return Reject(_TOO_LONG, math.inf)
        return Reject(_LATE, late_s)
