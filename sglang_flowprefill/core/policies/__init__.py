"""The policies, by the name that a user writes. A new one is one file in this folder.

The file defines a frozen dataclass with the attributes and the key of ``Policy``, and a ``name``
and a ``summary``, which the command line and its help show.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

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
    """Parameters of policies; each takes those that it has a field for.

    Attributes:
        starvation_factor: See ``SEdf``.
    """

    starvation_factor: float = 30.0


class NamedPolicy(Policy, Protocol):
    """A policy that a user may choose.

    Attributes:
        name: What the user writes.
        summary: One phrase on its order, for the help of the command line.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    summary: ClassVar[str]


def _policies() -> dict[str, type[NamedPolicy]]:
    """Return every policy that a module of this folder defines, by its name."""
    found: dict[str, type[NamedPolicy]] = {}
    for info in iter_modules([str(Path(__file__).parent)]):
        module = import_module(f".{info.name}", __package__)
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__ and hasattr(value, "summary"):
                assert value.name not in found, f"two policies are called {value.name!r}"
                found[value.name] = value
    return found


POLICIES: Mapping[str, type[NamedPolicy]] = MappingProxyType(_policies())
"""The policies that the command line offers."""


def make_policy(name: str, options: PolicyOptions | None = None) -> Policy:
    """Return the policy of this name, with the options that it has a field for.

    Raises:
        KeyError: There is none.

    >>> make_policy("s-edf", PolicyOptions(starvation_factor=4.0))
    SEdf(starvation_factor=4.0, may_preempt=True, lent_share=0.25)
    """
    policy = POLICIES[name]
    its_fields = {spec.name for spec in fields(policy)}
    given = asdict(options or PolicyOptions())
    return policy(**{option: value for option, value in given.items() if option in its_fields})


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
