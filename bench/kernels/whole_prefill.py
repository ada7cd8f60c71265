"""Whole prefills on a real server: what share of the GEMM rate they reach, where the rest goes."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_flowprefill.kernels.cpu.native import NativeKernels

from bench.kernels.cases import linear_cases, prefill_case, row_wise_cases
from bench.kernels.model_shape import ModelShape
from bench.kernels.roofline import Roof, fastest
from bench.systems.client import http_session
from bench.systems.engine import ServerOptions
from bench.systems.idle import prefill_timing
from bench.systems.servers import running_server
from bench.workloads.prompts import UniquePrompts

_SEED = 5
_TILE_ROWS = 512  # about what a row tile has: products of more rows are no faster


@dataclass(frozen=True, slots=True)
class WholePrefill:
    """One length of prompt.

    Attributes:
        num_tokens: Of the prompt.
        seconds: Fastest time to first token, by the client.
        median_s: Median time to first token.
        gemm_share: Operations of products and attention per second over the peak.
        family_s: What each family's kernels take when called alone, all layers; ``rest`` is what
            remains of the fastest time: launching, tiles, sampling, HTTP.
    """

    num_tokens: int
    seconds: float
    median_s: float
    gemm_share: float
    family_s: dict[str, float]


async def measure_prefills(
    lengths: Sequence[int], repeats: int, options: ServerOptions, log: Path
) -> dict[int, list[float]]:
    """Return times to first token by length, from one server, one prompt at a time.

    Raises:
        ServerError: A request failed.
    """
    prompts = UniquePrompts(_SEED)
    times: dict[int, list[float]] = {n: [] for n in lengths}
    async with (
        running_server("flowprefill", options, log, max(lengths)) as server,
        http_session() as session,
    ):
        for _ in range(repeats):
            for num_tokens in lengths:
                prompt = prompts.draw(num_tokens)
                timing = await prefill_timing(session, server.endpoint, prompt)
                times[num_tokens].append(timing.ttft_s)
    return times


def explain_prefill(
    num_tokens: int, times_s: Sequence[float], native: NativeKernels, shape: ModelShape, roof: Roof
) -> WholePrefill:
    """Compare whole prefills with the kernels that they consist of."""
    family_s: dict[str, float] = {}
    rows = min(num_tokens, _TILE_ROWS)
    cases = [*linear_cases(shape, rows), *row_wise_cases(native, shape, rows)]
    for case in cases:
        norms = 2 if case.family == "norm" else 1
        seconds = fastest(case.run)[0] * norms * shape.num_layers * num_tokens / rows
        family_s[case.family] = family_s.get(case.family, 0.0) + seconds
    attention = prefill_case(native, shape, num_tokens, num_tokens)
    family_s["attention"] = fastest(attention.run)[0] * shape.num_layers
    seconds = min(times_s)
    family_s["rest"] = seconds - sum(family_s.values())
    return WholePrefill(
        num_tokens,
        seconds,
        statistics.median(times_s),
        shape.prefill_flops(num_tokens) / seconds / roof.flops_per_s,
        family_s,
    )
