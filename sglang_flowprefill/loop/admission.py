"""SLO admission of a burst of new requests, each by the mode of its class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sglang_flowprefill.core import (
    AdmissionControl,
    Admit,
    Backlog,
    Degrade,
    PrefillDecider,
    PrefillRequest,
    Reject,
    RoundView,
)
from sglang_flowprefill.core.admission import AdmissionMode


@dataclass(frozen=True, slots=True)
class Admission:
    """Judges new requests.

    Attributes:
        control: Rules with the server's mode.
        mode_of: Returns the mode of an SLO class, given its name and the server's mode.
    """

    control: AdmissionControl
    mode_of: Callable[[str, AdmissionMode], AdmissionMode]

    def judge(
        self,
        arrivals: Sequence[PrefillRequest],
        view: RoundView,
        decider: PrefillDecider,
        now_s: float,
    ) -> list[tuple[PrefillRequest, Degrade | Reject]]:
        """Return those that are not admitted like any other, with the verdict on each.

        Args:
            arrivals: Requests that are new, in order of arrival; each sees those before it.
            view: What a round would see now. Arrivals that wait no more are not judged.
            decider: Predicts what goes before a request.
            now_s: Current time in seconds.
        """
        new = {request.request_id for request in arrivals}
        before = [request for request in view.waiting if request.request_id not in new]
        still_new = new.intersection(request.request_id for request in view.waiting)
        newcomers = [request for request in arrivals if request.request_id in still_new]
        backlog = Backlog(decider, replace(view, waiting=before), newcomers, now_s)
        verdicts: list[tuple[PrefillRequest, Degrade | Reject]] = []
        for request in newcomers:
            mode = self.mode_of(request.slo.class_name, self.control.mode)
            verdict = replace(self.control, mode=mode).decide(request, backlog, now_s)
            if not isinstance(verdict, Admit):
                verdicts.append((request, verdict))
            if not isinstance(verdict, Reject):
                is_degraded = isinstance(verdict, Degrade)
                backlog.add(replace(request, is_degraded=True) if is_degraded else request)
        return verdicts
