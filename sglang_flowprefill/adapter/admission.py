"""Admission with each SLO class's own word on what becomes of a hopeless request."""

from dataclasses import dataclass, replace

from sglang_flowprefill.api.slo import SloClasses
from sglang_flowprefill.core import (
    AdmissionControl,
    AdmissionDecision,
    PrefillRequest,
    PrefillScheduler,
    SchedulerView,
)


@dataclass(frozen=True, slots=True)
class AdmissionByClass:
    """Judges a new request by the mode of its class.

    Attributes:
        control: With the server's mode.
        classes: Of the server.
    """

    control: AdmissionControl
    classes: SloClasses

    def decide(
        self,
        request: PrefillRequest,
        scheduler: PrefillScheduler,
        view: SchedulerView,
        now_s: float,
    ) -> AdmissionDecision:
        """Decide on a request that is not in the view yet."""
        mode = self.classes.admission_mode(request.slo.class_name, self.control.mode)
        return replace(self.control, mode=mode).decide(request, scheduler, view, now_s)
