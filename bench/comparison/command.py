"""``compare`` and ``replay``: the same requests against systems in turn, or one that runs."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from bench.arguments import config_of, replay_options, server_options, workload_spec
from bench.comparison.figure import draw_comparison
from bench.comparison.report import (
    Comparison,
    SystemRun,
    comparison_document,
    new_folder,
    print_comparison,
    result_console,
    write_json,
)
from bench.replaying.replay import replay
from bench.replaying.row import RequestRow
from bench.results.progress import progress_bar
from bench.systems.client import http_session
from bench.systems.engine import Endpoint
from bench.systems.servers import ServerDescription, running_server
from bench.systems.sglang import STOCK
from bench.workloads.slo import ttft_slos_s, write_slo_classes
from bench.workloads.workload import Workload


async def run_compare(args: argparse.Namespace) -> None:
    """Start, warm up, replay and stop each system in turn; write what is known after each.

    Raises:
        BenchError: A system cannot be measured; results of those before it are kept.
    """
    console = result_console()
    workload = workload_spec(args).build()
    slos_s = class_slos_s(args, workload)
    folder = new_folder(args.out)
    options = server_options(args, write_slo_classes(folder / "slo-classes.yaml", slos_s))
    longest = max(request.num_input_tokens for request in workload.requests)
    runs: list[SystemRun] = []
    for name in args.systems:
        console.print(f"{name}: starting and warming up")
        log = folder / f"{name}.log"
        async with running_server(name, options, log, longest) as server:
            rows = await replay_with_progress(
                f"{name}: replaying", server.endpoint, workload, slos_s, args
            )
        runs.append(SystemRun(name, server.description, rows))
        _write(_comparison(args, workload, runs), folder)
    print_comparison(_comparison(args, workload, runs), console)
    console.print(f"written: {folder}")


async def run_replay(args: argparse.Namespace) -> None:
    """Replay against an SGLang server that runs already; it is neither warmed up nor stopped.

    Raises:
        BenchError: The server does not answer.
    """
    workload = workload_spec(args).build()
    slos_s = class_slos_s(args, workload)
    folder = new_folder(args.out)
    endpoint = Endpoint(args.url.rstrip("/"), STOCK)
    async with http_session() as session:
        info = await endpoint.engine.info(session, endpoint.url)
    server = ServerDescription(server_info=info)
    rows = await replay_with_progress(f"{args.name}: replaying", endpoint, workload, slos_s, args)
    comparison = _comparison(args, workload, [SystemRun(args.name, server, rows)])
    _write(comparison, folder)
    console = result_console()
    print_comparison(comparison, console)
    console.print(f"written: {folder}")


def class_slos_s(args: argparse.Namespace, workload: Workload) -> dict[str, float]:
    """Return the objective of every class of a workload."""
    classes = (request.slo_class for request in workload.requests)
    return ttft_slos_s(classes, args.slo_scale, dict(args.slo))


async def replay_with_progress(
    name: str,
    endpoint: Endpoint,
    workload: Workload,
    slos_s: Mapping[str, float],
    args: argparse.Namespace,
) -> list[RequestRow]:
    """Replay a workload, shown as a bar that begins with ``name``."""
    with progress_bar() as progress:
        task = progress.add_task(name, total=len(workload.requests))
        return await replay(
            endpoint,
            workload.requests,
            slos_s,
            replay_options(args),
            on_finished=lambda _row: progress.advance(task),
        )


def _comparison(args: argparse.Namespace, workload: Workload, runs: list[SystemRun]) -> Comparison:
    return Comparison(
        origin=workload.origin,
        rate_per_s=workload.rate_per_s,
        length_scale=args.length_scale,
        slo_scale=args.slo_scale,
        config=config_of(args),
        seed=args.seed,
        runs=runs,
    )


def _write(comparison: Comparison, folder: Path) -> None:
    write_json(folder / "result.json", comparison_document(comparison))
    draw_comparison(comparison, folder / "ttft.png")
