"""Discrete-event simulator: the server's own policy, with predicted time in place of a machine.

``core/`` decides, exactly as in the server; only the carrying out is simulated, one operator at
a time, on a clock that jumps. Standard library only. Useful to compare policies on a trace in
seconds, and to let property tests drive the policy through histories no server would show twice.

Memory is modelled as KV slots: a request holds them from the start of its prefill (or of each
chunk of it) to its last token, and starts over when it is dropped for somebody else's.

Deliberately not modelled: prefix sharing between requests, the cost of a switch (microseconds)
and grammars. Simulated numbers are no measurements.
"""

from sglang_flowprefill.sim.machine import MachineModel
from sglang_flowprefill.sim.records import Arrival, Outcome, SimulationResult
from sglang_flowprefill.sim.simulator import Simulation, simulate

__all__ = ["Arrival", "MachineModel", "Outcome", "Simulation", "SimulationResult", "simulate"]
