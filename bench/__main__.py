"""``python -m bench compare|load|replay|urgent|streaming|prediction|blocking|prefill|generate``."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from bench.arguments import (
    add_replay_arguments,
    add_server_arguments,
    add_slo_arguments,
    add_workload_arguments,
    workload_spec,
)
from bench.blocking.command import run_blocking
from bench.blocking.options import add_blocking_arguments
from bench.compare import run_compare, run_replay
from bench.errors import BenchError
from bench.load.command import add_load_arguments, run_load
from bench.prediction import add_prediction_arguments, run_prediction
from bench.prefill.command import run_prefill
from bench.prefill.options import add_prefill_arguments
from bench.streaming import add_streaming_arguments, run_streaming
from bench.urgent import add_urgent_arguments, run_urgent
from bench.workloads.trace_file import write_trace
from sglang_flowprefill.errors import FlowPrefillError


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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    compare = commands.add_parser("compare", help="replay the same requests on each system in turn")
    compare.set_defaults(run=run_compare)
    add_workload_arguments(compare)
    add_slo_arguments(compare)
    add_replay_arguments(compare, send_class=True)
    add_server_arguments(compare)
    _add_out(compare, default="compare")

    replay = commands.add_parser("replay", help="replay against an SGLang server that runs")
    replay.set_defaults(run=run_replay)
    replay.add_argument("--url", required=True, help="its base address")
    replay.add_argument("--name", default="server", help="what to call it in the result")
    add_workload_arguments(replay)
    add_slo_arguments(replay)
    add_replay_arguments(replay, send_class=False)
    _add_out(replay, default="replay")

    urgent = commands.add_parser("urgent", help="head-of-line test: urgent prompts in a long one")
    urgent.set_defaults(run=run_urgent)
    add_urgent_arguments(urgent)
    add_server_arguments(urgent)
    _add_out(urgent, default="urgent")

    load = commands.add_parser(
        "load", help="attainment of every class from light load to overload, by share of capacity"
    )
    load.set_defaults(run=run_load)
    add_workload_arguments(load)
    add_load_arguments(load)
    add_slo_arguments(load)
    add_replay_arguments(load, send_class=True)
    add_server_arguments(load)
    _add_out(load, default="load")

    streaming = commands.add_parser(
        "streaming", help="gaps between tokens, alone and with long prompts in between"
    )
    streaming.set_defaults(run=run_streaming)
    add_streaming_arguments(streaming)
    add_server_arguments(streaming)
    _add_out(streaming, default="streaming")

    prediction = commands.add_parser(
        "prediction", help="how wrong the predictor is, also on a machine that slows down"
    )
    prediction.set_defaults(run=run_prediction)
    add_prediction_arguments(prediction)
    add_server_arguments(prediction)
    _add_out(prediction, default="prediction")

    blocking = commands.add_parser(
        "blocking", help="how long the running prefill makes others wait; cost of preemption"
    )
    blocking.set_defaults(run=run_blocking)
    add_blocking_arguments(blocking)
    _add_out(blocking, default="blocking")

    prefill = commands.add_parser(
        "prefill", help="time to first token of one prompt on an idle server, by its length"
    )
    prefill.set_defaults(run=run_prefill)
    add_prefill_arguments(prefill)
    _add_out(prefill, default="prefill")

    generate = commands.add_parser("generate", help="write a workload as a trace file")
    generate.set_defaults(run=_run_generate)
    add_workload_arguments(generate)
    generate.add_argument(
        "--out", type=Path, default=Path("qwentrace_like_synthetic.csv.gz"), help="CSV or CSV.gz"
    )
    return parser


def _add_out(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("bench-results") / default,
        help="new folder for result, picture and server logs (default: %(default)s)",
    )


async def _run_generate(args: argparse.Namespace) -> None:
    workload = workload_spec(args).build()
    write_trace(args.out, workload.requests)
    print(f"{len(workload.requests)} requests of {workload.origin} written to {args.out}")


if __name__ == "__main__":
    sys.exit(main())
