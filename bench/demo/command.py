"""``python -m bench demo``: a few minutes on two cores."""

import argparse

from rich.live import Live

from bench.arguments import config_of, positive_float, positive_int, some_of
from bench.comparison.report import (
    Comparison,
    SystemRun,
    comparison_document,
    new_folder,
    print_comparison,
    result_console,
    write_json,
)
from bench.demo.board import Board
from bench.demo.burst import LENGTH_SCALE, SLO_SCALE, burst
from bench.demo.page import write_page
from bench.replaying.replay import ReplayOptions, replay
from bench.systems.engine import ServerOptions
from bench.systems.named import SYSTEMS
from bench.systems.servers import running_server
from bench.workloads.slo import ttft_slos_s, write_slo_classes
from bench.workloads.workload import Workload

RESULT = "result.json"
_TIMELINE = "timeline.json"
_SUBJECT = "flowprefill"  # the one that writes a timeline
_REDRAWS_PER_S = 2  # the terminal shares the processor with the server


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which systems, and how large a burst."""
    group = parser.add_argument_group("demo")
    group.add_argument(
        "--systems",
        type=some_of(SYSTEMS),
        default=("stock", _SUBJECT),
        help="comma-separated, in the order to run (default: stock,flowprefill)",
    )
    group.add_argument("--num-requests", type=positive_int, default=40, help="of the burst")
    group.add_argument(
        "--rate", type=positive_float, default=2.5, help="requests/s behind the documents"
    )
    group.add_argument("--seed", type=int, default=0, help="of generator and prompts")
    group.add_argument("--startup-timeout-s", type=positive_float, default=300.0)


async def run_demo(args: argparse.Namespace) -> None:
    """Run the burst on each system in turn; print, and write a page.

    Raises:
        BenchError: A system cannot be measured; the result of those before it is kept.
    """
    await _Demo(args).run()


class _Demo:
    """One demo, from its options to its page."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._console = result_console()
        self._folder = new_folder(args.out)
        self._workload = burst(args.num_requests, args.rate, args.seed)
        classes = (request.slo_class for request in self._workload.requests)
        self._slos_s = ttft_slos_s(classes, SLO_SCALE)

    async def run(self) -> None:
        print_to = self._console
        print_to.print(introduction(self._workload))
        runs: list[SystemRun] = []
        for name in self._args.systems:
            runs.append(await self._run_system(name))
            comparison = self._comparison(runs)
            write_json(self._folder / RESULT, comparison_document(comparison))
        print_comparison(comparison, print_to)
        page = write_page(comparison, RESULT, _TIMELINE, self._folder)
        print_to.print(f"open in a browser: {page}")

    async def _run_system(self, name: str) -> SystemRun:
        requests = self._workload.requests
        longest = max(request.num_input_tokens for request in requests)
        self._console.print(f"{name}: starting and warming up (up to a minute)")
        log = self._folder / f"{name}.log"
        async with running_server(name, self._server_options(), log, longest) as server:
            board = Board(name, requests, self._slos_s)
            with Live(board, console=self._console, refresh_per_second=_REDRAWS_PER_S):
                rows = await replay(
                    server.endpoint,
                    requests,
                    self._slos_s,
                    ReplayOptions(seed=self._args.seed),
                    on_finished=board.on_finished,
                )
            self._console.print()  # the board does not end its last line
        return SystemRun(name, server.description, rows)

    def _server_options(self) -> ServerOptions:
        trace = str((self._folder / _TIMELINE).resolve())
        return ServerOptions(
            slo_config=write_slo_classes(self._folder / "slo-classes.yaml", self._slos_s),
            flags_for={_SUBJECT: ("--flowprefill-trace", trace)},
            startup_timeout_s=self._args.startup_timeout_s,
        )

    def _comparison(self, runs: list[SystemRun]) -> Comparison:
        return Comparison(
            origin=self._workload.origin,
            rate_per_s=self._workload.rate_per_s,
            length_scale=LENGTH_SCALE,
            slo_scale=SLO_SCALE,
            config=config_of(self._args),
            seed=self._args.seed,
            runs=runs,
        )


def introduction(workload: Workload) -> str:
    """Say what is about to happen, and what is scaled."""
    return (
        f"{len(workload.requests)} requests ({workload.origin}). Lengths x{LENGTH_SCALE:g}, TTFT "
        f"objectives x{SLO_SCALE:g}: a 135M model on a few cores is slower than what they were "
        "made for.\nOne system after the other gets the same requests at the same times, each "
        "with its own default settings.\n"
    )
