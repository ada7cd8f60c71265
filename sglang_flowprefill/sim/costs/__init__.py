"""What forward passes cost: one protocol, four models of it, and where their numbers come from."""

from sglang_flowprefill.sim.costs.choose import costs_for
from sglang_flowprefill.sim.costs.fitted import FittedCost, fit_prefill_cost
from sglang_flowprefill.sim.costs.pass_cost import PassCost, PassSeconds
from sglang_flowprefill.sim.costs.profile import read_profile_cost
from sglang_flowprefill.sim.costs.roofline import RooflineCost
from sglang_flowprefill.sim.costs.table import TableCost, shipped_table

__all__ = [
    "FittedCost",
    "PassCost",
    "PassSeconds",
    "RooflineCost",
    "TableCost",
    "costs_for",
    "fit_prefill_cost",
    "read_profile_cost",
    "shipped_table",
]
