"""SLO admission of a burst of new requests, each by the mode of its class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sglang_flowprefill.core import (
    AdmissionControl,
    AdmissionDecision,
    Admit,
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
        waiting = [request for request in view.waiting if request.request_id not in new]
        still_new = new.intersection(request.request_id for request in view.waiting)
        verdicts: list[tuple[PrefillRequest, Degrade | Reject]] = []
        for request in arrivals:
            if request.request_id not in still_new:
                continue
            verdict = self._decide(request, replace(view, waiting=waiting), decider, now_s)
            if isinstance(verdict, Admit):
                waiting.append(request)
                continue
            verdicts.append((request, verdict))
            if isinstance(verdict, Degrade):
                waiting.append(replace(request, is_degraded=True))
        return verdicts

    def _decide(
        self, request: PrefillRequest, view: RoundView, decider: PrefillDecider, now_s: float
    ) -> AdmissionDecision:
        mode = self.mode_of(request.slo.class_name, self.control.mode)
        return replace(self.control, mode=mode).decide(request, decider, view, now_s)
