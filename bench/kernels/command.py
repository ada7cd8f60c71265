"""``kernels``: each CPU kernel against this machine's peaks, and whole prefills likewise.

The peaks are measured, not looked up: the fastest bfloat16 product and the speed of a large copy.
Kernels run alone, at the sizes of one model, in this process; then a server of this package
prefills whole prompts, and the time beyond its kernels' is shown as ``rest``.
"""

import argparse
from pathlib import Path

import torch
from sglang_flowprefill.kernels.cpu.native import load_native

from bench.arguments import config_of
from bench.errors import BenchError
from bench.kernels.cases import kernel_cases
from bench.kernels.model_shape import model_shape
from bench.kernels.report import (
    KernelResult,
    draw_kernels,
    kernel_table,
    prefill_table,
    result_document,
)
from bench.kernels.roofline import measure_case, measure_roof
from bench.kernels.whole_prefill import explain_prefill, measure_prefills
from bench.progress import progress_bar
from bench.report import new_folder, result_console, write_json
from bench.servers import ServerOptions
from sglang_flowprefill.cpu.embedded_model import embedded_model_path


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
    native = load_native()
    if native is None:
        raise BenchError("there are no compiled kernels on this machine; the log says why")
    console, folder = result_console(), new_folder(args.out)
    path = Path(args.model_path or embedded_model_path("bfloat16"))
    shape = model_shape(path)
    with torch.inference_mode():
        roof = measure_roof()
        cases = [*kernel_cases(native, shape)]
        with progress_bar() as progress:
            measured = [measure_case(case, roof) for case in progress.track(cases)]
    target = native.version.partition("-")[0]
    title = (
        f"{path.name}, bfloat16, {target}, {torch.get_num_threads()} threads; peaks "
        f"{roof.flops_per_s / 1e9:.0f} GFLOP/s, {roof.bytes_per_s / 1e9:.1f} GB/s"
    )
    console.print(kernel_table(title, measured))
    prefills = []
    if args.prefill_lengths:
        options = ServerOptions(model_path=str(path), dtype="bfloat16")
        log = folder / "flowprefill.log"
        times = await measure_prefills(args.prefill_lengths, args.repeats, options, log)
        with torch.inference_mode():
            prefills = [explain_prefill(n, t, native, shape, roof) for n, t in times.items()]
        console.print(prefill_table(prefills))
    result = KernelResult(title, shape, roof, measured, prefills)
    write_json(folder / "result.json", result_document(result, config_of(args)))
    draw_kernels(result, folder / "result.png")
    console.print(f"written: {folder}")
