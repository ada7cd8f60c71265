"""The policies, by the name that a user writes. A new one is one file here and one row below."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sglang_flowprefill.core.policies.degraded_last import DegradedLast
from sglang_flowprefill.core.policies.edf import Edf
from sglang_flowprefill.core.policies.fcfs import Fcfs
from sglang_flowprefill.core.policies.hrrn import Hrrn
from sglang_flowprefill.core.policies.s_edf import SEdf
from sglang_flowprefill.core.policies.s_edf_paper import SEdfPaper
from sglang_flowprefill.core.policies.sjf import Sjf
from sglang_flowprefill.core.policy import Policy


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """Parameters of policies; each takes what concerns it.

    Attributes:
        starvation_factor: See ``SEdf``.
    """

    starvation_factor: float = 30.0


POLICIES: Mapping[str, Callable[[PolicyOptions], Policy]] = MappingProxyType(
    {
        "s-edf": lambda options: SEdf(options.starvation_factor),
        "s-edf-paper": lambda _: SEdfPaper(),
        "edf": lambda _: Edf(),
        "sjf": lambda _: Sjf(),
        "hrrn": lambda _: Hrrn(),
        "fcfs": lambda _: Fcfs(),
    }
)
"""The policies that the command line offers today."""


def make_policy(name: str, options: PolicyOptions | None = None) -> Policy:
    """Return the policy of this name.

    Raises:
        KeyError: There is none.

    >>> make_policy("s-edf", PolicyOptions(starvation_factor=4.0))
    SEdf(starvation_factor=4.0, may_preempt=True, lent_share=0.25)
    """
    return POLICIES[name](options or PolicyOptions())


__all__ = [
    "POLICIES",
    "DegradedLast",
    "Edf",
    "Fcfs",
    "Hrrn",
    "PolicyOptions",
    "SEdf",
    "SEdfPaper",
    "Sjf",
    "make_policy",
]
