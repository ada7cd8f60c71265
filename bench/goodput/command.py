"""``python -m bench goodput``: the highest rate at which each system meets enough objectives."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from bench.arguments import config_of, replay_options, server_options, workload_spec
from bench.comparison.report import new_folder, result_console, result_head
from bench.errors import BenchError, UsageError
from bench.goodput.analysis import best_peer, greatest_loads
from bench.goodput.measuring import SearchPlan, SystemSearch
from bench.goodput.options import ProbedWorkload
from bench.goodput.result import GoodputResult, SystemResult, read_result, write_result
from bench.goodput.table import print_goodput
from bench.systems.servers import running_server
from bench.workloads.slo import ttft_slos_s, write_slo_classes

RESULT_FILE = "goodput.json"


async def run_goodput(args: argparse.Namespace) -> None:
    """Search with every system in turn; write what is known after each probe, print a table.

    With ``--equal-load`` the first system then replays what the best of the others bore at most.

    A system that cannot be measured is reported and left out; the others are still searched.

    Raises:
        UsageError: Options contradict each other or the result to go on with.
        BenchError: No system could be measured.
    """
    console = result_console()
    plan = _plan(args)
    path = args.out / RESULT_FILE
    result = _kept(path, args, plan) if args.resume and path.exists() else _new(args, plan)
    measured = [await _measure(name, args, plan, result, console) for name in args.systems]
    if not any(measured):
        raise BenchError("no system could be measured")
    if args.equal_load and measured[0]:
        first = args.systems[0]
        await _measure(first, args, _with_loads_of_best_peer(plan, result, first), result, console)
    print_goodput(result, console)
    console.print(f"written: {path}")


def _plan(args: argparse.Namespace) -> SearchPlan:
    """Return what the options ask for.

    Raises:
        UsageError: They give a rate, which is what is searched.
    """
    if args.rate is not None:
        raise UsageError(
            f"--rate {args.rate:g}: goodput searches the rate; --start-rate SYSTEM=RATE says where "
            "to begin, --probe-rates which rates to replay at too"
        )
    spec = workload_spec(args)
    workload = ProbedWorkload(spec, args.window_s, args.min_requests, args.num_seeds)
    classes = (request.slo_class for request in spec.build().requests)
    return SearchPlan(
        workload=workload,
        class_slos_s=ttft_slos_s(classes, args.slo_scale, dict(args.slo)),
        replay=replay_options(args),
        seeds=tuple(range(args.seed, args.seed + args.num_seeds)),
        slo_scales=args.slo_scales,
        goals=args.goals,
        resolution=args.resolution,
        lowest_rate_per_s=args.lowest_rate,
        every_class=args.every_class,
        start_rates_per_s=dict(args.start_rate),
        probe_rates_per_s=args.probe_rates,
    )


def _new(args: argparse.Namespace, plan: SearchPlan) -> GoodputResult:
    new_folder(args.out)
    spec = plan.workload.spec
    title = (
        f"max goodput on {spec.origin}, lengths x{args.length_scale:g}, SLOs x{args.slo_scale:g}"
    )
    return GoodputResult(
        head=result_head(title, config_of(args), args.seed),
        origin=spec.origin,
        length_scale=args.length_scale,
        class_slos_s=plan.class_slos_s,
    )


def _kept(path: Path, args: argparse.Namespace, plan: SearchPlan) -> GoodputResult:
    """Return the result to go on with.

    Raises:
        UsageError: It was measured with other requests or other objectives.
    """
    result = read_result(path)
    kept_num_requests = result.head["config"].get("num_requests")
    fresh = (plan.workload.spec.origin, args.num_requests, args.length_scale, plan.class_slos_s)
    kept = (result.origin, kept_num_requests, result.length_scale, result.class_slos_s)
    if fresh != kept:
        raise UsageError(f"{path} holds another workload: {kept}, not {fresh}; give another --out")
    return result


def _with_loads_of_best_peer(plan: SearchPlan, result: GoodputResult, first: str) -> SearchPlan:
    kinds = [(scale, goal) for scale in plan.slo_scales for goal in plan.goals]
    best = [(best_peer(result, first, *kind), kind) for kind in kinds]
    loads = [load for peer, kind in best if peer for load in greatest_loads(peer, *kind)]
    return replace(plan, loads=tuple(dict.fromkeys(loads)))


async def _measure(
    name: str, args: argparse.Namespace, plan: SearchPlan, result: GoodputResult, console: Console
) -> bool:
    """Measure what a result lacks of a system; return whether nothing failed."""
    system = result.systems.setdefault(name, SystemResult(name))
    if plan.is_answered(system):
        console.print(f"{name}: known already")
        return True
    try:
        await _search(args, plan, result, system, console)
    except BenchError as error:
        console.print(f"{name} is left out: {error}", style="red", markup=False)
        return False
    return True


async def _search(
    args: argparse.Namespace,
    plan: SearchPlan,
    result: GoodputResult,
    system: SystemResult,
    console: Console,
) -> None:
    slo_file = write_slo_classes(args.out / "slo-classes.yaml", plan.class_slos_s)
    requests = plan.workload.spec.build().requests
    longest = max(request.num_input_tokens for request in requests)
    console.print(f"{system.name}: starting and warming up")
    options = server_options(args, slo_file)
    log = args.out / f"{system.name}.log"
    async with running_server(system.name, options, log, longest) as server:
        system.server = asdict(server.description)
        search = SystemSearch(
            plan,
            system,
            server.endpoint,
            on_progress=lambda: write_result(args.out / RESULT_FILE, result),
            say=lambda line: console.print(line, markup=False),
        )
        await search.run()
