"""Which cost model there is for a model on a GPU."""

from sglang_flowprefill.sim.costs.pass_cost import CorrectedCost, PassCost
from sglang_flowprefill.sim.costs.roofline import RooflineCost
from sglang_flowprefill.sim.costs.table import shipped_table
from sglang_flowprefill.sim.gpus import Gpu
from sglang_flowprefill.sim.shapes import ModelShape

_A100_REDUCE_SHARE = 0.11
"""Of a prefill with tensor parallelism on an A100 that is all-reduce (Llama-3.1-70B, TP4)."""


def costs_for(shape: ModelShape, gpu: Gpu, tp: int) -> PassCost:
    """Return shipped costs where there are any, else a roofline."""
    table = None if gpu.tables is None else shipped_table(gpu.tables, shape.name, tp)
    if table is None:
        return RooflineCost(shape, gpu, tp)
    if gpu.name != "a800" or tp == 1:
        return table
    factor = 1.0 + _A100_REDUCE_SHARE * (300 / 200 - 1)
    return CorrectedCost(
        table, factor, because=f"of an A100, times {factor:.3f} for the A800's slower links"
    )
