"""``kernels``: each CPU kernel against this machine's peaks, and whole prefills likewise.

The peaks are measured, not looked up: the fastest bfloat16 product and the speed of a large copy.
Kernels run alone, at the sizes of one model, in a process with the variables of a server. Then a
server of this package prefills whole prompts, and time beyond its kernels' is shown as ``rest``.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from sglang_flowprefill.kernels.cpu.native import NativeKernels, load_native

from bench.arguments import config_of
from bench.comparison.report import new_folder, result_console, write_json
from bench.errors import BenchError
from bench.kernels.cases import kernel_cases
from bench.kernels.model_shape import ModelShape, model_shape
from bench.kernels.report import (
    KernelResult,
    draw_kernels,
    kernel_table,
    prefill_table,
    result_document,
)
from bench.kernels.roofline import Roof, measure_case, measure_roof
from bench.kernels.whole_prefill import WholePrefill, explain_prefill, measure_prefills
from bench.results.progress import progress_bar
from bench.systems.engine import ServerOptions
from sglang_flowprefill.cpu.defaults import cpu_environment
from sglang_flowprefill.cpu.embedded_model import embedded_model_path

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def add_kernel_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``kernels``."""
    parser.add_argument("--model-path", help="folder; default: the embedded model")
    parser.add_argument(
        "--prefill-lengths",
        type=int,
        nargs="*",
        default=[32, 512, 2048, 4096, 8000],
        help="tokens of whole prefills; none: kernels only (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="prefills of each length")


async def run_kernels(args: argparse.Namespace) -> None:
    """Measure, print, and write result and picture.

    Raises:
        BenchError: There are no compiled kernels here, or a prefill failed.
    """
    console, folder = result_console(), new_folder(args.out)
    path = Path(args.model_path or embedded_model_path("bfloat16"))
    shape = model_shape(path)
    result = _as_in_a_server(_measure_kernels, path.name, shape)
    console.print(kernel_table(result.title, result.kernels))
    if args.prefill_lengths:
        options = ServerOptions(model_path=str(path), dtype="bfloat16")
        log = folder / "flowprefill.log"
        times = await measure_prefills(args.prefill_lengths, args.repeats, options, log)
        prefills = _as_in_a_server(_explain_prefills, times, shape, result.roof)
        result = replace(result, whole_prefills=prefills)
        console.print(prefill_table(prefills))
    write_json(folder / "result.json", result_document(result, config_of(args)))
    draw_kernels(result, folder / "result.png")
    console.print(f"written: {folder}")


def _as_in_a_server(
    function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """Run in a fresh process with a server's variables: OpenMP reads them when it is loaded."""
    for name, value in cpu_environment().items():
        os.environ.setdefault(name, value)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _measure_kernels(model_name: str, shape: ModelShape) -> KernelResult:
    native = _required_kernels()
    with torch.inference_mode():
        roof = measure_roof()
        cases = [*kernel_cases(native, shape)]
        with progress_bar() as progress:
            kernels = [measure_case(case, roof) for case in progress.track(cases)]
    title = (
        f"{model_name}, bfloat16, {native.version.partition('-')[0]}, "
        f"{torch.get_num_threads()} threads; peaks {roof.flops_per_s / 1e9:.0f} GFLOP/s, "
        f"{roof.bytes_per_s / 1e9:.1f} GB/s"
    )
    return KernelResult(title, shape, roof, kernels, [])


def _explain_prefills(
    times: Mapping[int, Sequence[float]], shape: ModelShape, roof: Roof
) -> list[WholePrefill]:
    native = _required_kernels()
    with torch.inference_mode():
        return [explain_prefill(n, t, native, shape, roof) for n, t in times.items()]


def _required_kernels() -> NativeKernels:
    native = load_native()
    if native is None:
        raise BenchError("there are no compiled kernels on this machine; the log says why")
    return native
