"""Admission with each SLO class's own word on what becomes of a hopeless request."""

from dataclasses import dataclass, replace
from typing import cast

from sglang_flowprefill.api.slo import SloClasses
from sglang_flowprefill.config import FlowPrefillConfig
from sglang_flowprefill.core import (
    AdmissionControl,
    AdmissionDecision,
    PrefillDecider,
    PrefillRequest,
    RoundView,
)
from sglang_flowprefill.core.admission import AdmissionMode


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
        scheduler: PrefillDecider,
        view: RoundView,
        now_s: float,
    ) -> AdmissionDecision:
        """Decide on a request that is not in the view yet."""
        mode = self.classes.admission_mode(request.slo.class_name, self.control.mode)
        return replace(self.control, mode=mode).decide(request, scheduler, view, now_s)


def admission_modes(config: FlowPrefillConfig, classes: SloClasses) -> set[AdmissionMode]:
    """Return what may become of a hopeless request, of any class or none."""
    server_mode = cast("AdmissionMode", config.admission)
    return {server_mode} | {classes.admission_mode(name, server_mode) for name in classes.by_name}


def can_reject(config: FlowPrefillConfig, classes: SloClasses) -> bool:
    """Tell whether any request may be refused."""
    return "reject" in admission_modes(config, classes) or config.max_waiting is not None


def admission_of(config: FlowPrefillConfig, classes: SloClasses) -> AdmissionByClass | None:
    """Return what judges new requests; None if every one is admitted."""
    if admission_modes(config, classes) == {"off"} and config.max_waiting is None:
        return None
    control = AdmissionControl(cast("AdmissionMode", config.admission), config.max_waiting)
    return AdmissionByClass(control, classes)
