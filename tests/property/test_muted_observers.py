"""No decision depends on who watches."""

import logging
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from strategies import TICK_S, arrivals, machines, schedulers

from sglang_flowprefill.core import PrefillDecider
from sglang_flowprefill.loop.inflight import InflightTable
from sglang_flowprefill.loop.observer import Observer, Observers
from sglang_flowprefill.observe.decision_log import DecisionLog
from sglang_flowprefill.observe.live_state import LiveState
from sglang_flowprefill.sim.simulator import Simulation


@dataclass(frozen=True)
class RecordingDecider(PrefillDecider):
    """Remembers every decision and when it was made."""

    decisions: list = field(default_factory=list)

    def decide(self, view, now_s):
        """Decide as always."""
        decision = super().decide(view, now_s)
        self.decisions.append((now_s, decision))
        return decision


class Broken(Observer):
    """Overrides everything, so that it is told everything, and raises."""


for _name in [name for name in vars(Observer) if name.startswith("on_")]:

    def _raise(self, *args):
        raise RuntimeError("observer out of order")

    _raise.__name__ = _name
    setattr(Broken, _name, _raise)


def decisions(trace, decider, machine, observers=None):
    """Serve a trace; return what was decided when. None: the observers that always watch."""
    decider.decisions.clear()
    simulation = Simulation(decider, machine, tpot_slo_s=8 * TICK_S)
    if observers is not None:
        simulation._loop._observers = Observers(observers)
    for arrival in trace:
        simulation.add(arrival)
    simulation.run()
    return list(decider.decisions), simulation.outcomes


def full_house():
    """One of everything that a server has, and one that is broken."""
    live = LiveState("s-edf", "operator", {}, lambda: 0.0, InflightTable())
    return [Broken(), live, DecisionLog("info", "json")]


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@settings(max_examples=150, deadline=None)
@given(arrivals(), schedulers(RecordingDecider, max_preemptions=2), machines())
def test_muting_every_observer_changes_no_decision(trace, decider, machine):
    """Not even of a policy at its bound on preemptions; nor does an observer that raises."""
    usual = decisions(trace, decider, machine)
    assert decisions(trace, decider, machine, []) == usual
    assert decisions(trace, decider, machine, full_house()) == usual
