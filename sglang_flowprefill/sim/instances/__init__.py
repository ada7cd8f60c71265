"""Simulated server instances: this package's server, engines of other rules, decode servers."""

from sglang_flowprefill.sim.instances.decoding import DecodeInstance
from sglang_flowprefill.sim.instances.flowprefill import FlowPrefillInstance
from sglang_flowprefill.sim.instances.instance import Instance
from sglang_flowprefill.sim.instances.steps import StepInstance, StepRules

__all__ = ["DecodeInstance", "FlowPrefillInstance", "Instance", "StepInstance", "StepRules"]
