"""What a cluster asks of an instance, whatever its rules."""

from collections.abc import Sequence
from typing import Protocol

from sglang_flowprefill.sim.records import Arrival, FirstToken, Outcome


class Instance(Protocol):
    """One server.

    Attributes:
        next_end_s: Time before which nothing ends here, whoever may come; infinity with no work.
        busy_s: Seconds in which the device ran something.
        max_kv_tokens: Most KV slots that were in use at once.
        blocking_s: For each yield, seconds from the event that asked for it to the boundary.
    """

    @property
    def next_end_s(self) -> float: ...  # noqa: D102 (documented above)
    @property
    def busy_s(self) -> float: ...  # noqa: D102
    @property
    def max_kv_tokens(self) -> int: ...  # noqa: D102
    @property
    def blocking_s(self) -> Sequence[float]: ...  # noqa: D102

    def add(self, arrival: Arrival, come_s: float) -> None:
        """Let a request come at this time, which no later call may be before."""
        ...

    def advance(self, until_s: float) -> None:
        """Serve up to a time; what runs then stops at its next boundary beyond it."""
        ...

    def take_first_tokens(self) -> Sequence[FirstToken]:
        """Return the first tokens since the last call, also of what ends beyond the time."""
        ...

    def take_outcomes(self) -> Sequence[Outcome]:
        """Return the requests that ended since the last call."""
        ...
