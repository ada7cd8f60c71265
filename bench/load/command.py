"""``python -m bench load``: capacity first, then replays at shares of it."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.arguments import (
    config_of,
    positive_float,
    positive_floats,
    positive_int,
    server_options,
    workload_spec,
)
from bench.comparison.command import class_slos_s, replay_with_progress
from bench.comparison.report import measured_on, new_folder, result_console, result_head, write_json
from bench.load.figure import draw_load
from bench.load.points import LoadPoint, levels_of, peak_goodput_per_s
from bench.replaying.row import RequestRow
from bench.systems.servers import RunningServer, running_server
from bench.workloads.slo import write_slo_classes
from bench.workloads.workload import Workload

_DEFAULT_LOADS = (0.5, 0.7, 0.9, 1.1, 1.3, 1.6)


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides at which loads is measured."""
    group = parser.add_argument_group("load")
    group.add_argument(
        "--loads",
        type=positive_floats,
        default=_DEFAULT_LOADS,
        help="shares of capacity, comma-separated; --rate is not used (default: %(default)s)",
    )
    group.add_argument(
        "--seeds", type=positive_int, default=1, help="replays at each load, counting from --seed"
    )
    group.add_argument(
        "--capacity",
        type=positive_float,
        help="requests/s; default: measured, by sending all requests at once",
    )


async def run_load(args: argparse.Namespace) -> None:
    """Measure every system at every load; print, and write what is known after each replay.

    Raises:
        BenchError: A system cannot be measured; results before that are kept.
    """
    console = result_console()
    workload = workload_spec(args).build()
    folder = new_folder(args.out)
    slo_file = write_slo_classes(folder / "slo-classes.yaml", class_slos_s(args, workload))
    options = server_options(args, slo_file)
    longest = max(request.num_input_tokens for request in workload.requests)
    for name in args.systems:
        console.print(f"{name}: starting and warming up")
        async with running_server(name, options, folder / f"{name}.log", longest) as server:
            sweep = _Sweep(name, server, args, folder)
            await sweep.run(workload, console)
        draw_load(sweep.title(workload), levels_of(sweep.points), folder / f"{name}.png")
        print_load(sweep.title(workload), sweep.points, console)
    console.print(f"written: {folder}")


class _Sweep:
    """One system at all loads.

    Attributes:
        points: What is known so far.
    """

    def __init__(
        self, name: str, server: RunningServer, args: argparse.Namespace, folder: Path
    ) -> None:
        self.points: list[LoadPoint] = []
        self._name = name
        self._server = server
        self._args = args
        self._folder = folder

    async def run(self, workload: Workload, console: Console) -> None:
        """Measure capacity, if it is not given, and then every load with every seed."""
        args = self._args
        capacity = args.capacity or await self._capacity_per_s(workload)
        console.print(f"{self._name}: gets {capacity:.2f} requests/s done if all come at once")
        for load in args.loads:
            for seed in range(args.seed, args.seed + args.seeds):
                self.points.append(await self._measure(load, load * capacity, seed))
                self._write(workload, capacity)

    def title(self, workload: Workload) -> str:
        """Say what was replayed, how it was scaled, and on what."""
        args = self._args
        return (
            f"{self._name}: {len(workload.requests)} requests of {workload.origin}, "
            f"lengths x{args.length_scale:g}, SLOs x{args.slo_scale:g}, "
            f"{measured_on([self._server.description])}"
        )

    async def _capacity_per_s(self, workload: Workload) -> float:
        at_once = tuple(replace(request, arrival_s=0.0) for request in workload.requests)
        rows = await self._replay("all at once", replace(workload, requests=at_once), self._args)
        return len(rows) / max(row.finished_s or row.sent_s for row in rows)

    async def _measure(self, load: float, rate_per_s: float, seed: int) -> LoadPoint:
        args = argparse.Namespace(**vars(self._args) | {"seed": seed, "rate": rate_per_s})
        workload = workload_spec(args).build()
        rows = await self._replay(f"load {load:g}, seed {seed}", workload, args)
        return LoadPoint(load, rate_per_s, seed, rows)

    async def _replay(
        self, what: str, workload: Workload, args: argparse.Namespace
    ) -> list[RequestRow]:
        slos_s = class_slos_s(args, workload)
        endpoint = self._server.endpoint
        return await replay_with_progress(f"{self._name}: {what}", endpoint, workload, slos_s, args)

    def _write(self, workload: Workload, capacity: float) -> None:
        args = self._args
        document = result_head(self.title(workload), config_of(args), args.seed) | {
            "system": self._name,
            "server": asdict(self._server.description),
            "capacity_per_s": capacity,
            "points": [
                {
                    "load": point.load,
                    "rate_per_s": point.rate_per_s,
                    "seed": point.seed,
                    "goodput_per_s": point.goodput_per_s,
                    "summary": asdict(point.summary),
                    "rows": [asdict(row) | {"ttft_s": row.ttft_s} for row in point.rows],
                }
                for point in self.points
            ],
        }
        write_json(self._folder / f"{self._name}.json", document)


def print_load(title: str, points: Sequence[LoadPoint], console: Console) -> None:
    """Print a row for each load: attainment of all and of every class, goodput."""
    levels = levels_of(points)
    peak = peak_goodput_per_s(levels)
    names = list(levels[0].class_attained)
    table = Table(title=title)
    for heading in ("load", "req/s", "attained", "range", *names, "goodput req/s", "of peak"):
        table.add_column(heading, justify="right")
    for level in levels:
        low, high = level.attained_range
        by_class = level.class_attained
        table.add_row(
            f"{level.load:.0%}",
            f"{level.rate_per_s:.2f}",
            f"{level.attained:.1%}",
            f"{low:.1%} - {high:.1%}",
            *(f"{by_class[name]:.1%}" if name in by_class else "-" for name in names),
            f"{level.goodput_per_s:.2f}",
            f"{level.goodput_per_s / peak:.0%}",
        )
    console.print(table)
    for level in levels:
        worst = min(level.class_attained.items(), key=lambda item: item[1])
        console.print(f"load {level.load:.0%}: worst class {worst[0]} {worst[1]:.1%}")
