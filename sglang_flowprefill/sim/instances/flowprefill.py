"""This package's own server: its loop, its policy, on a simulated device."""

from collections.abc import Sequence

from sglang_flowprefill.core import DecodePacing, PrefillDecider
from sglang_flowprefill.loop.event_loop import LoopSettings
from sglang_flowprefill.sim.machine import Machine
from sglang_flowprefill.sim.records import Arrival, FirstToken, Outcome
from sglang_flowprefill.sim.simulator import Simulation


class FlowPrefillInstance:
    """One server of this package.

    Args:
        decider: The policy with its predictor.
        machine: The hardware.
        tpot_slo_s: Default objective from one token to the next.
        pacing: Rules for decode steps beside prefills.
        settings: Of the loop.
    """

    def __init__(
        self,
        decider: PrefillDecider,
        machine: Machine,
        *,
        tpot_slo_s: float,
        pacing: DecodePacing,
        settings: LoopSettings,
    ) -> None:
        self._simulation = Simulation(
            decider,
            machine,
            tpot_slo_s=tpot_slo_s,
            pacing=pacing,
            settings=settings,
            leaps=True,
            counts=False,
        )

    @property
    def next_end_s(self) -> float:
        """Time before which nothing ends here."""
        return self._simulation.next_end_s

    @property
    def busy_s(self) -> float:
        """Seconds in which the device ran something."""
        return self._simulation.busy_s

    @property
    def max_kv_tokens(self) -> int:
        """Most KV slots that were in use at once."""
        return self._simulation.kv.max_used

    @property
    def blocking_s(self) -> Sequence[float]:
        """Blocking time of every yield to an event."""
        return self._simulation.blocking_s

    def add(self, arrival: Arrival, come_s: float) -> None:
        """Let a request come.

        One that comes by now finds a prefill beyond its arrival, at the boundary that it waited
        for.
        """
        waited_s = self._simulation.now_s - come_s
        if waited_s > 0.0 and self._simulation.prefills:
            self._simulation.blocking_s.append(waited_s)
        self._simulation.add(arrival, come_s)

    def advance(self, until_s: float) -> None:
        """Serve up to a time."""
        if self._simulation.has_work:
            self._simulation.run(until_s)

    def take_first_tokens(self) -> Sequence[FirstToken]:
        """Return who got a first token."""
        return self._simulation.take_first_tokens()

    def take_outcomes(self) -> Sequence[Outcome]:
        """Return who ended."""
        ended = list(self._simulation.outcomes.values())
        self._simulation.outcomes.clear()
        return ended
