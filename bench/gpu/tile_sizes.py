"""What a tile loses for being small: products of few rows, attention of few queries.

A tile that does not fill all multiprocessors to its end leaves some of them idle. How much that
is depends on the library's blocks: with 128 queries of one head to a block and 32 heads, a tile of
640 queries is 160 blocks, and a machine that runs 264 at once is busy with them as long as with
256.
"""

import torch

from bench.gpu.llama import Shape
from bench.gpu.rates import Ceilings, Rate, measure_product, random_half
from bench.gpu.roofline import layer_products, measure_attention

_NUM_QUERIES = (512, 640, 768, 896, 1024, 1152, 1536, 2048, 4096)
_NUM_KEYS = 32_768
_NUM_ROWS = (512, 960, 1024, 1984, 2048, 3968, 4096, 8192)


def measure_tile_sizes(shape: Shape, ceilings: Ceilings) -> list[Rate]:
    """Measure tiles of one long prompt: attention's latest queries, and gate and up."""
    rates = [
        measure_attention(shape, num_queries, _NUM_KEYS, ceilings)
        for num_queries in (*_NUM_QUERIES, _NUM_KEYS)
    ]
    n, k = layer_products(shape)["gate_up"]
    weight = random_half(n, k)
    for num_rows in _NUM_ROWS:
        x = random_half(num_rows, k)
        output = x.new_empty((num_rows, n))

        def product(x: torch.Tensor = x, output: torch.Tensor = output) -> None:
            torch.mm(x, weight.T, out=output)

        rates.append(measure_product("gate_up: torch", product, (num_rows, n, k), ceilings))
    return rates
