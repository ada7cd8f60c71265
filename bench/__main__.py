"""``python -m bench COMMAND``; without a command, the list of them."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.ablation.command import add_ablation_arguments, run_ablation
from bench.agreement import add_agreement_arguments, run_agreement
from bench.arguments import (
    add_replay_arguments,
    add_server_arguments,
    add_slo_arguments,
    add_workload_arguments,
    workload_spec,
)
from bench.blocking.command import run_blocking
from bench.blocking.options import add_blocking_arguments
from bench.comparison.command import run_compare, run_replay
from bench.demo.command import add_demo_arguments, run_demo
from bench.errors import BenchError
from bench.goodput.command import run_goodput
from bench.goodput.options import add_goodput_arguments
from bench.goodput_report.command import add_report_arguments, run_report
from bench.gpu.command import run_gpu
from bench.gpu.options import add_gpu_arguments
from bench.kernels.command import add_kernel_arguments, run_kernels
from bench.load.command import add_load_arguments, run_load
from bench.prediction import add_prediction_arguments, run_prediction
from bench.prefill.command import run_prefill
from bench.prefill.options import add_prefill_arguments
from bench.streaming import add_streaming_arguments, run_streaming
from bench.urgent import add_urgent_arguments, run_urgent
from bench.workloads.trace_file import write_trace
from sglang_flowprefill.errors import FlowPrefillError


@dataclass(frozen=True, slots=True)
class _Command:
    """One command.

    Attributes:
        help: What it does, in a line.
        run: Does it.
        arguments: Each adds some options to its parser.
        out: Default folder of its results.
    """

    help: str
    run: Callable[[argparse.Namespace], Awaitable[None]]
    arguments: tuple[Callable[[argparse.ArgumentParser], None], ...]
    out: Path


def _commands() -> dict[str, _Command]:
    replaying = (add_workload_arguments, add_slo_arguments)
    to_ours = partial(add_replay_arguments, send_class=True)
    to_any = partial(add_replay_arguments, send_class=False)
    results = Path("bench-results")
    return {
        "compare": _Command(
            "replay the same requests on each system in turn",
            run_compare,
            (*replaying, to_ours, add_server_arguments),
            results / "compare",
        ),
        "goodput": _Command(
            "the highest rate at which each system meets enough objectives, with its spread",
            run_goodput,
            (*replaying, add_goodput_arguments, to_ours, add_server_arguments),
            results / "goodput",
        ),
        "load": _Command(
            "attainment of every class from light load to overload, by share of capacity",
            run_load,
            (*replaying, add_load_arguments, to_ours, add_server_arguments),
            results / "load",
        ),
        "ablation": _Command(
            "replay the same requests with one setting of FlowPrefill changed at a time",
            run_ablation,
            (*replaying, add_ablation_arguments, to_ours, add_server_arguments),
            results / "ablation",
        ),
        "replay": _Command(
            "replay against a server that is running",
            run_replay,
            (_add_running_server, *replaying, to_any),
            results / "replay",
        ),
        "urgent": _Command(
            "head-of-line test: urgent prompts in a long one",
            run_urgent,
            (add_urgent_arguments, add_server_arguments),
            results / "urgent",
        ),
        "streaming": _Command(
            "gaps between tokens, alone and with long prompts in between",
            run_streaming,
            (add_streaming_arguments, add_server_arguments),
            results / "streaming",
        ),
        "prediction": _Command(
            "how wrong the predictor is, also on a machine that slows down",
            run_prediction,
            (add_prediction_arguments, add_server_arguments),
            results / "prediction",
        ),
        "agreement": _Command(
            "whether systems give the same greedy answers, and whether a tie explains it if not",
            run_agreement,
            (add_agreement_arguments, add_server_arguments),
            results / "agreement",
        ),
        "blocking": _Command(
            "how long the running prefill makes others wait; cost of preemption",
            run_blocking,
            (add_blocking_arguments,),
            results / "blocking",
        ),
        "prefill": _Command(
            "time to first token of one prompt on an idle server, by its length",
            run_prefill,
            (add_prefill_arguments,),
            results / "prefill",
        ),
        "kernels": _Command(
            "each CPU kernel, and whole prefills, against this machine's peaks",
            run_kernels,
            (add_kernel_arguments,),
            results / "kernels",
        ),
        "gpu": _Command(
            "blocking time and kernels' rates on a GPU, no server",
            run_gpu,
            (add_gpu_arguments,),
            results / "gpu",
        ),
        "demo": _Command(
            "stock SGLang and FlowPrefill under the same burst, watched live (minutes)",
            run_demo,
            (add_demo_arguments,),
            results / "demo",
        ),
        "report": _Command(
            "make one page, with pictures, of results of goodput",
            run_report,
            (add_report_arguments,),
            results / "report",
        ),
        "generate": _Command(
            "write a workload as a trace file",
            _run_generate,
            (add_workload_arguments,),
            Path("qwentrace_like_synthetic.csv.gz"),
        ),
    }


def main() -> int:
    """Run one command; return the exit status."""
    args = _parser().parse_args()
    try:
        asyncio.run(_run(args))
    except (BenchError, FlowPrefillError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    return 0


async def _run(args: argparse.Namespace) -> None:
    # A terminated bench must still stop the servers it started, as an interrupted one does.
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in _commands().items():
        subparser = subparsers.add_parser(name, help=command.help)
        subparser.set_defaults(run=command.run)
        for add_arguments in command.arguments:
            add_arguments(subparser)
        subparser.add_argument(
            "--out",
            type=Path,
            default=command.out,
            help="where results, pictures and server logs go (default: %(default)s)",
        )
    return parser


def _add_running_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", required=True, help="its base address")
    parser.add_argument("--name", default="server", help="what to call it in the result")


async def _run_generate(args: argparse.Namespace) -> None:
    workload = workload_spec(args).build()
    write_trace(args.out, workload.requests)
    print(f"{len(workload.requests)} requests of {workload.origin} written to {args.out}")


if __name__ == "__main__":
    sys.exit(main())
