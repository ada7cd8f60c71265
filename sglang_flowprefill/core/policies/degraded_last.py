"""Another policy's order, with degraded requests after all others.

Who is degraded is decided at arrival (``core/admission.py``); this is what it means.
"""

import math
from dataclasses import dataclass

from sglang_flowprefill.core.policy import Candidate, Policy, PolicyKey


@dataclass(frozen=True, slots=True)
class DegradedLast:
    """Normal requests by another policy, then degraded ones by that policy.

    Attributes:
        policy: The other policy.
        patience: Multiple of its own patience after which a degraded request is ordered like any
            other, so that it does not wait for ever under lasting overload.
    """

    policy: Policy
    patience: float = 100.0

    @property
    def may_preempt(self) -> bool:
        """As the other policy says."""
        return self.policy.may_preempt

    @property
    def lent_share(self) -> float:
        """As the other policy says."""
        return self.policy.lent_share

    def key(self, candidate: Candidate, now_s: float) -> PolicyKey:
        """Order by the other policy, degraded requests behind."""
        key = self.policy.key(candidate, now_s)
        if candidate.is_degraded:
            age_s = now_s - candidate.arrival_s
            if age_s <= self.patience * candidate.patience_s:
                return (math.inf, *key)
        return key
