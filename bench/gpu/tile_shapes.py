"""Which tile suits the product that a doorbell stops: all of them, measured in one run.

The default in ``doorbell_gemm.py`` is chosen from this table.
"""

from typing import Final

import torch
from sglang_flowprefill.kernels.triton.doorbell import Doorbell
from sglang_flowprefill.kernels.triton.doorbell_gemm import DoorbellGemm, TileShape

from bench.gpu.device import GPU
from bench.gpu.llama import Shape
from bench.gpu.rates import Ceilings, Rate, measure_product, random_half
from bench.gpu.roofline import layer_products

_PRODUCTS = ("gate_up", "down")

_ONE = (128, 256, 64, 8)
"""Rows, columns, depth and warps of a program that has a multiprocessor to itself."""

_SHARED = (128, 128, 64, 4)
"""Of one of two that share a multiprocessor."""

TILE_SHAPES: Final = {
    "3 stages": TileShape(*_ONE, num_stages=3),
    "4 stages": TileShape(*_ONE, num_stages=4),
    "4 stages, group 16": TileShape(*_ONE, num_stages=4, rows_in_group=16),
    "depth 128": TileShape(128, 256, 128, 8, num_stages=2),
    "256 rows": TileShape(256, 128, 64, 8, num_stages=4),
    "256 rows, group 4": TileShape(256, 128, 64, 8, num_stages=4, rows_in_group=4),
    "128 columns": TileShape(128, 128, 64, 8, num_stages=4),
    "two share": TileShape(*_SHARED, num_stages=3, programs_per_processor=2),
    "two share, group 16": TileShape(
        *_SHARED, num_stages=3, programs_per_processor=2, rows_in_group=16
    ),
    "three share": TileShape(128, 128, 32, 4, num_stages=4, programs_per_processor=3),
    "by loads, 3 stages": TileShape(*_ONE, num_stages=3, copies_in_bulk=False),
    "by loads, two share": TileShape(
        *_SHARED, num_stages=3, programs_per_processor=2, copies_in_bulk=False
    ),
}


def measure_tile_shapes(shape: Shape, num_rows: int, ceilings: Ceilings) -> list[Rate]:
    """Measure the product in every tile shape, torch's own first."""
    rates = []
    doorbell = Doorbell(GPU)
    for name in _PRODUCTS:
        n, k = layer_products(shape)[name]
        x, weight = random_half(num_rows, k), random_half(n, k)
        size = num_rows, n, k
        output = x.new_empty((num_rows, n))

        def torch_product(
            x: torch.Tensor = x, weight: torch.Tensor = weight, output: torch.Tensor = output
        ) -> None:
            torch.mm(x, weight.T, out=output)

        rates.append(measure_product(f"{name}: torch", torch_product, size, ceilings))
        for label, tile in TILE_SHAPES.items():

            def stoppable(
                x: torch.Tensor = x, weight: torch.Tensor = weight, tile: TileShape = tile
            ) -> None:
                DoorbellGemm(x, weight, doorbell, tile).launch()

            rates.append(measure_product(f"  {label}", stoppable, size, ceilings))
    return rates
