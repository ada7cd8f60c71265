"""``gpu``: measure, print, and write what is known after each part."""

import argparse
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import median
from time import perf_counter

import torch

from bench.blocking.waits import summarise_waits
from bench.errors import UsageError
from bench.gpu.blocking import blocking_waits_s, forward_s, uncut_forward_s
from bench.gpu.device import GPU
from bench.gpu.fused import FUSED_OPS
from bench.gpu.llama import LLAMA_8B_LAYER, Llama, random_llama
from bench.gpu.options import GpuOptions, gpu_options
from bench.gpu.report import CutResult, GpuReport, LengthResult
from bench.gpu.roofline import measure_ceilings, measure_kernels
from bench.gpu.small_costs import measure_doorbell_stops, measure_small_costs
from bench.gpu.victim import CUTS, Costs, Cut, Victim
from bench.report import new_folder, result_console

_KERNEL_ROWS = 8192
_STOPPED_ROWS = 16_384
_LONG_TOKENS = 8192
_LONG_FACTOR = 3.0  # above that, arrivals are further apart

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
    report.kernels = measure_kernels(shape, _KERNEL_ROWS, report.ceilings)
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
    uncut_s, forwards_s, num_boundaries = _take_turns(victim, costs, options.num_rounds)
    note(f"{num_tokens} tokens: arrivals")
    cuts = {}
    for cut in CUTS:
        waits_s = _waits_s(victim, cut, costs, median(uncut_s), options)
        summary = summarise_waits(waits_s)
        assert summary is not None, "at least one arrival waited"
        cuts[cut.name] = CutResult(forwards_s[cut.name], waits_s, summary, num_boundaries[cut.name])
    return LengthResult(num_tokens, uncut_s, costs.seconds_per_row, costs.seconds_per_pair, cuts)


def _take_turns(
    victim: Victim, costs: Costs, num_rounds: int
) -> tuple[list[float], dict[str, list[float]], dict[str, int]]:
    """Time undisturbed passes, all cuts once a round, so that drift hits all alike."""
    uncut_s: list[float] = []
    forwards_s: dict[str, list[float]] = {cut.name: [] for cut in CUTS}
    num_boundaries = {}
    for round_ in range(num_rounds + 1):
        uncut = uncut_forward_s(victim)
        if round_:  # the first warms up
            uncut_s.append(uncut)
        for cut in CUTS:
            with victim.cut(cut, costs) as begin:
                seconds, num_boundaries[cut.name] = forward_s(victim, begin)
            if round_:
                forwards_s[cut.name].append(seconds)
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
