"""``python -m bench ablation``: one server for each variation, one replay for each rate and seed.

Written anew after each replay; started again with the same ``--out`` it goes on where it was.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.ablation.measuring import server_state, server_use
from bench.ablation.points import AblationPoint, levels_of, point_document, read_points
from bench.ablation.report import draw_ablation, print_ablation
from bench.ablation.variations import DEFAULT, VARIATIONS, variations_for
from bench.arguments import (
    config_of,
    positive_floats,
    positive_int,
    server_options,
    some_of,
    workload_spec,
)
from bench.blocking.sending import require_shared_clock
from bench.comparison.command import class_slos_s, replay_with_progress
from bench.comparison.report import measured_on, new_folder, result_console, result_head, write_json
from bench.systems.servers import RunningServer, ServerDescription, running_server
from bench.workloads.slo import write_slo_classes

SYSTEM = "flowprefill"
RESULT = "result.json"


def add_ablation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is varied, at which rates, how often."""
    group = parser.add_argument_group("ablation")
    group.add_argument(
        "--variations",
        type=some_of(VARIATIONS),
        help="default: all that make a difference on the device; know " + ",".join(VARIATIONS),
    )
    group.add_argument(
        "--rates",
        type=positive_floats,
        default=(2.5,),
        help="offered requests/s, comma-separated; --rate is not used (default: %(default)s)",
    )
    group.add_argument(
        "--seeds", type=positive_int, default=3, help="replays each, counting from --seed"
    )


async def run_ablation(args: argparse.Namespace) -> None:
    """Measure every variation at every rate with every seed; print, write and draw.

    Raises:
        BenchError: A server cannot be measured; results before that are kept.
    """
    require_shared_clock()
    await _Ablation(args, result_console()).run()


class _Ablation:
    """One ablation, from its options to its result file."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self._args = args
        self._console = console
        self._folder: Path = args.out
        self._servers: dict[str, ServerDescription] = {}
        self._points = read_points(self._folder / RESULT, _comparable(args))
        if not self._points:
            new_folder(self._folder)

    async def run(self) -> None:
        args = self._args
        for name in args.variations or variations_for(args.device):
            missing = list(self._missing(name))
            if missing:
                await self._measure_variation(name, missing)
        levels = levels_of(self._points)
        title = self._title()
        print_ablation(title, levels, self._console)
        draw_ablation(title, levels, self._folder)
        self._console.print(f"written: {self._folder}")

    def _missing(self, name: str) -> Iterator[argparse.Namespace]:
        """Give the options of each replay that is not in the result yet."""
        args = self._args
        known = {(p.variation, p.rate_per_s, p.seed) for p in self._points}
        for rate in args.rates:
            for seed in range(args.seed, args.seed + args.seeds):
                if (name, rate, seed) not in known:
                    yield argparse.Namespace(**vars(args) | {"rate": rate, "seed": seed})

    async def _measure_variation(self, name: str, replays: list[argparse.Namespace]) -> None:
        workload = workload_spec(self._args).build()
        slo_file = self._folder / "slo-classes.yaml"
        write_slo_classes(slo_file, class_slos_s(self._args, workload))
        trace = (self._folder / f"{name}.trace.json").resolve()
        shared = server_options(self._args, slo_file)
        flags = (*shared.flags, *VARIATIONS[name].flags, "--flowprefill-trace", str(trace))
        options = replace(shared, flags=flags)
        longest = max(request.num_input_tokens for request in workload.requests)
        self._console.print(f"{name}: starting and warming up")
        log = self._folder / f"{name}.log"
        async with running_server(SYSTEM, options, log, longest) as server:
            self._servers[name] = server.description
            for replayed in replays:
                self._points.append(await self._measure(name, server, replayed, trace))
                self._write()
        if name != DEFAULT:  # a hundred megabytes, of which all that matters is in the result
            trace.unlink()

    async def _measure(
        self, name: str, server: RunningServer, args: argparse.Namespace, trace: Path
    ) -> AblationPoint:
        workload = workload_spec(args).build()
        slos_s = class_slos_s(args, workload)
        what = f"{name}: {args.rate:g} requests/s, seed {args.seed}"
        url = server.endpoint.url
        before = await server_state(url, server.process_id)
        rows = await replay_with_progress(what, server.endpoint, workload, slos_s, args)
        after = await server_state(url, server.process_id)
        use = server_use(before, after, len(rows), trace)
        return AblationPoint(name, args.rate, args.seed, use, tuple(rows))

    def _title(self) -> str:
        args = self._args
        workload = workload_spec(args).build()
        servers = self._servers.values()
        device = measured_on(servers) if servers else f"measured on {args.device}"
        return (
            f"{len(workload.requests)} requests of {workload.origin}, "
            f"lengths x{args.length_scale:g}, SLOs x{args.slo_scale:g}, {device}"
        )

    def _write(self) -> None:
        config = config_of(self._args) | _comparable(self._args)
        document = result_head(self._title(), config, self._args.seed) | {
            "servers": {name: asdict(server) for name, server in self._servers.items()},
            "points": [point_document(point) for point in self._points],
        }
        write_json(self._folder / RESULT, document)


def _comparable(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that all replays of one result must share."""
    open_ended = {"out", "variations", "rates", "seeds", "rate", "systems"}
    return {name: value for name, value in config_of(args).items() if name not in open_ended}
