"""``gpu``: measure, print, and write what is known after each part."""

import argparse
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import median
from time import perf_counter

import torch

from bench.blocking.waits import summarise_waits
from bench.comparison.report import new_folder, result_console
from bench.errors import UsageError
from bench.gpu.blocking import blocking_waits_s, forward_s, uncut_forward_s
from bench.gpu.cuts import Cut
from bench.gpu.device import GPU
from bench.gpu.fused import FUSED_OPS
from bench.gpu.llama import LLAMA_8B_LAYER, Llama, random_llama
from bench.gpu.options import GpuOptions, gpu_options
from bench.gpu.rates import measure_ceilings
from bench.gpu.report import GpuReport
from bench.gpu.result import CutResult, LengthResult
from bench.gpu.roofline import measure_kernels
from bench.gpu.small_costs import measure_doorbell_stops, measure_small_costs
from bench.gpu.tile_shapes import measure_tile_shapes
from bench.gpu.tile_sizes import measure_tile_sizes
from bench.gpu.victim import Costs, Victim

_KERNEL_ROWS = 8192
_STOPPED_ROWS = 16_384
_LONG_TOKENS = 8192
_LONG_FACTOR = 3.0  # above that, arrivals are further apart
_CUTS_PER_UNCUT = 4

Note = Callable[[str], None]


async def run_gpu(args: argparse.Namespace) -> None:
    """Measure blocking time, its cost and the kernels' rates on the GPU of this machine.

    Raises:
        UsageError: There is none.
    """
    if not torch.cuda.is_available():
        raise UsageError("bench gpu needs a CUDA device, and torch finds none")
    measure(gpu_options(args))


@torch.inference_mode()
def measure(options: GpuOptions) -> None:
    """Measure everything; what is done stays written if the rest is cut short."""
    started_s = perf_counter()
    console = result_console()
    shape = replace(LLAMA_8B_LAYER, num_layers=options.num_layers)
    report = GpuReport(options, asdict(shape), new_folder(options.out))

    def note(text: str) -> None:
        console.print(f"{perf_counter() - started_s:6.1f} s  {text}")

    note("small costs")
    report.small_costs = measure_small_costs()
    note("ceilings and kernels")
    report.ceilings = measure_ceilings()
    report.rates["Kernels"] = measure_kernels(shape, _KERNEL_ROWS, report.ceilings)
    report.write()
    note("shapes and sizes of tiles")
    report.rates["Tile shapes of doorbell_gemm"] = measure_tile_shapes(
        shape, _KERNEL_ROWS, report.ceilings
    )
    report.rates["Tiles of a long prompt"] = measure_tile_sizes(shape, report.ceilings)
    report.write()
    note("doorbell")
    report.doorbell_stops = measure_doorbell_stops(shape, _STOPPED_ROWS, options.seed)
    report.write()
    note("model")
    torch.manual_seed(options.seed)
    model = random_llama(shape, GPU, torch.bfloat16, FUSED_OPS)
    for num_tokens in options.lengths:
        if perf_counter() - started_s > options.max_s:
            note(f"{num_tokens} tokens left out: time is up")
            continue
        report.lengths.append(_measure_length(model, num_tokens, options, note))
        report.write()
    note("done")
    report.print(console)
    console.print(f"written: {report.folder.name}")


def _measure_length(model: Llama, num_tokens: int, options: GpuOptions, note: Note) -> LengthResult:
    vocabulary = model.shape.vocabulary
    victim = Victim(model, torch.randint(vocabulary, (num_tokens,), device=GPU))
    for _ in range(2):
        victim.run_uncut()  # libraries load, the allocator fills up
    costs = victim.measure_costs()
    note(f"{num_tokens} tokens: undisturbed")
    uncut_s, forwards_s, num_boundaries = _take_turns(victim, costs, options)
    note(f"{num_tokens} tokens: arrivals")
    cuts = {}
    for cut in options.cuts:
        waits_s = _waits_s(victim, cut, costs, median(uncut_s), options)
        summary = summarise_waits(waits_s)
        assert summary is not None, "at least one arrival waited"
        cuts[cut.name] = CutResult(forwards_s[cut.name], waits_s, summary, num_boundaries[cut.name])
    return LengthResult(num_tokens, uncut_s, costs.seconds_per_row, costs.seconds_per_pair, cuts)


def _take_turns(
    victim: Victim, costs: Costs, options: GpuOptions
) -> tuple[list[float], dict[str, list[float]], dict[str, int]]:
    """Time undisturbed passes: all cuts once a round in random order, uncut ones in between.

    A GPU near its power limit is the faster the less the pass before asked of it: a fixed order
    would give some cuts an advantage.
    """
    rng = random.Random(options.seed)
    uncut_s: list[float] = []
    forwards_s: dict[str, list[float]] = {cut.name: [] for cut in options.cuts}
    num_boundaries = {}
    for round_ in range(options.num_rounds + 1):
        uncut_of_round_s = []
        for index, cut in enumerate(rng.sample(options.cuts, len(options.cuts))):
            if index % _CUTS_PER_UNCUT == 0:
                uncut_of_round_s.append(uncut_forward_s(victim))
            with victim.cut(cut, costs) as begin:
                seconds, num_boundaries[cut.name] = forward_s(victim, begin)
            if round_:  # the first warms up
                forwards_s[cut.name].append(seconds)
        if round_:
            uncut_s.append(median(uncut_of_round_s))
    return uncut_s, forwards_s, num_boundaries


def _waits_s(
    victim: Victim, cut: Cut, costs: Costs, uncut_s: float, options: GpuOptions
) -> list[float]:
    factor = _LONG_FACTOR if victim.num_tokens > _LONG_TOKENS else 1.0
    with victim.cut(cut, costs) as begin:
        return blocking_waits_s(
            victim,
            begin,
            cut,
            forward_s=uncut_s,
            layer_s=uncut_s / options.num_layers,
            duration_s=options.blocking_s * factor,
            rng=random.Random(options.seed),
        )
