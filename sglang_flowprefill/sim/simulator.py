"""The server's own loop and policy on a simulated machine.

``loop/event_loop.py`` and ``core/`` are imported, not written again: what is simulated is the
machine below them (``sim/engine.py``) and the clients.
"""

import math
from collections.abc import Iterable, Sequence

from sglang_flowprefill.core import (
    AdmissionControl,
    Decision,
    DecodePacing,
    Observation,
    PredictionError,
    PrefillBatch,
    PrefillDecider,
    PrefillRequest,
    RoundView,
)
from sglang_flowprefill.loop.admission import Admission
from sglang_flowprefill.loop.decode_clock import DecodeClock
from sglang_flowprefill.loop.event_loop import EventLoop, LoopSettings
from sglang_flowprefill.loop.inflight import AnyCursor
from sglang_flowprefill.loop.observer import Observer
from sglang_flowprefill.loop.statistics import StatisticsObserver
from sglang_flowprefill.sim.engine import UNTIL, SimulatedEngine, SimulatedPrefill
from sglang_flowprefill.sim.kv_pool import KvPool
from sglang_flowprefill.sim.machine import Machine
from sglang_flowprefill.sim.records import Arrival, FirstToken, Outcome, SimulationResult

_AT_ONCE = DecodePacing()
_EVERYBODY = AdmissionControl()
_DEFAULTS = LoopSettings()


def simulate(
    arrivals: Iterable[Arrival],
    decider: PrefillDecider,
    machine: Machine,
    *,
    tpot_slo_s: float = 0.2,
    pacing: DecodePacing = _AT_ONCE,
    admission: AdmissionControl = _EVERYBODY,
) -> SimulationResult:
    """Serve all arrivals to their last token.

    Args:
        arrivals: Requests in any order.
        decider: The policy. Its predictor may differ from the machine's cost.
        machine: Model of what takes how long, and of how much memory there is.
        tpot_slo_s: Objective in seconds from one token to the next, of requests that have none of
            their own.
        pacing: Rules for a decode step beside prefills.
        admission: Rules for hopeless requests at their arrival.

    Raises:
        ValueError: Two requests share an id, or one does not fit into the machine's memory.
    """
    simulation = Simulation(
        decider, machine, tpot_slo_s=tpot_slo_s, pacing=pacing, admission=admission
    )
    given = list(arrivals)
    for arrival in given:
        simulation.add(arrival)
    simulation.run()
    return SimulationResult(
        outcomes=tuple(simulation.outcomes[arrival.request.request_id] for arrival in given),
        blocking_s=tuple(simulation.blocking_s),
        decode_ends_s=tuple(simulation.decode_ends_s),
        max_kv_tokens=simulation.kv.max_used,
        statistics=simulation.statistics.statistics(),
    )


class Simulation:
    """A simulated server, to be driven step by step; ``simulate`` drives it through a whole trace.

    Args:
        decider: As for ``simulate``, like the others.
        machine: Model of what takes how long, and of how much memory there is.
        tpot_slo_s: Default objective in seconds from one token to the next.
        pacing: Rules for a decode step beside prefills.
        admission: Rules for hopeless requests at their arrival.
        observers: Who is told what happens, beside the statistics.
        settings: Parameters of the loop.
        leaps: Run many decode steps at once where nothing else could happen.
        counts: Keep statistics.

    Attributes:
        statistics: What happened so far.
        blocking_s: Seconds from the event to the boundary, for each yield.
    """

    def __init__(
        self,
        decider: PrefillDecider,
        machine: Machine,
        *,
        tpot_slo_s: float = 0.2,
        pacing: DecodePacing = _AT_ONCE,
        admission: AdmissionControl = _EVERYBODY,
        observers: Sequence[Observer] = (),
        settings: LoopSettings = _DEFAULTS,
        leaps: bool = False,
        counts: bool = True,
    ) -> None:
        blocking = _BlockingTimes()
        self.statistics = StatisticsObserver()
        self.blocking_s = blocking.seconds
        counting = (self.statistics,) if counts else ()
        self._engine = SimulatedEngine(machine, decider.must_reserve_all, leaps=leaps)
        self._loop: EventLoop[SimulatedPrefill] = EventLoop(
            self._engine,
            self._engine.events,
            _Fixed(decider),
            DecodeClock(pacing, tpot_slo_s, machine.step_s(1, 0)),
            self._engine.clock,
            admission=_admission(admission),
            observers=(*counting, blocking, *observers),
            settings=settings,
        )

    @property
    def now_s(self) -> float:
        """Simulated time in seconds."""
        return self._engine.now_s

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """Outcomes of the requests that have ended, by id."""
        return self._engine.outcomes

    @property
    def kv(self) -> KvPool:
        """The KV slots."""
        return self._engine.kv

    @property
    def busy_s(self) -> float:
        """Seconds in which the device ran something."""
        return self._engine.busy_s

    def take_first_tokens(self) -> Sequence[FirstToken]:
        """Return the first tokens since the last call."""
        taken, self._engine.first_tokens = self._engine.first_tokens, []
        return taken

    @property
    def next_end_s(self) -> float:
        """Time before which nothing ends, whoever may come; infinity with no work."""
        return self._engine.next_end_s

    @property
    def decode_ends_s(self) -> list[float]:
        """End of each decode step, in seconds."""
        return self._engine.decode_ends_s

    @property
    def waiting(self) -> list[PrefillRequest]:
        """Requests that wait for their prefill."""
        return self._engine.waiting

    @property
    def prefills(self) -> list[PrefillBatch]:
        """Started and unfinished prefills."""
        return self._loop.inflight.batches

    @property
    def running_ids(self) -> list[str]:
        """Ids of the requests past their prefill."""
        return self._engine.running_ids

    @property
    def num_coming(self) -> int:
        """Requests that were added and have not arrived yet."""
        return self._engine.num_coming

    @property
    def has_work(self) -> bool:
        """True if any request is still to come or has not ended."""
        return self._engine.num_coming > 0 or not self._engine.is_idle

    def add(self, arrival: Arrival, come_s: float | None = None) -> None:
        """Let a request come.

        Args:
            arrival: The request.
            come_s: When, if not at its arrival time: it arrived elsewhere first.

        Raises:
            ValueError: Its id has been used, or it does not fit into the machine's memory.
        """
        self._engine.add(arrival, come_s)

    def abort(self, request_id: str, time_s: float) -> None:
        """Let the client of a request leave at a time; one that has ended by then does not mind."""
        self._engine.abort(request_id, time_s)

    def run(self, until_s: float = math.inf) -> None:
        """Serve what has come until then; a forward pass stops at its next boundary."""
        self._engine.until_s = until_s
        while self.has_work and self._engine.now_s < until_s:
            self._loop.step()
        if not self.has_work:
            self._loop.step()  # a round for the last completion


class _Fixed:
    """A decider that learns nothing."""

    def __init__(self, decider: PrefillDecider) -> None:
        self.present = decider

    def decide(self, view: RoundView, now_s: float) -> Decision:
        return self.present.decide(view, now_s)

    def learn(self, observation: Observation) -> PredictionError | None:  # noqa: ARG002
        return None


class _BlockingTimes(Observer):
    """Collects the blocking time of every yield to an event."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_yield(
        self,
        cursor: AnyCursor,  # noqa: ARG002
        now_s: float,  # noqa: ARG002
        cause: str,
        blocking_s: float,
    ) -> None:
        """Keep one."""
        if cause != UNTIL:
            self.seconds.append(blocking_s)


def _admission(control: AdmissionControl) -> Admission | None:
    if control == _EVERYBODY:
        return None
    return Admission(control, lambda _class_name, mode: mode)
