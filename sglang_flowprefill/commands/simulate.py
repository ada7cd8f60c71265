"""``python -m sglang_flowprefill simulate``: plan a deployment, without GPU, torch or SGLang.

Simulates the server's own loop and policy on predicted times. Says how many requests per second a
deployment sustains, what a rate needs, and how other systems would do with the same requests.
Nothing here is measured, and every answer says where its costs come from.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

from sglang_flowprefill.commands import simulate_report as report
from sglang_flowprefill.commands.simulate_inputs import read_rows, read_worker, read_workload
from sglang_flowprefill.core import POLICIES
from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.sim.cluster import Failure
from sglang_flowprefill.sim.deployment import (
    HOST_S,
    SYSTEMS,
    ServerSettings,
    find_system,
)
from sglang_flowprefill.sim.device import GRANULARITIES, MEMORY_FRACTION
from sglang_flowprefill.sim.gpus import GPUS
from sglang_flowprefill.sim.routers import ROUTERS
from sglang_flowprefill.sim.shapes import KNOWN_SHAPES
from sglang_flowprefill.sim.study.calibration import calibrate, corrected
from sglang_flowprefill.sim.study.goodput import (
    RunLength,
    max_rate,
    max_rate_with_band,
    min_instances,
)
from sglang_flowprefill.sim.study.paired import compare
from sglang_flowprefill.sim.study.serving import Deployment, Run, attempt
from sglang_flowprefill.sim.workload import Workload

GOALS = (0.9, 0.95, 0.99)
_DEFAULTS = ServerSettings()


def add_command(commands: Any) -> None:
    """Add the command to those of ``argparse``."""
    parser = commands.add_parser(
        "simulate",
        help="plan a deployment: rates, sizes, comparisons, without a GPU",
        description=__doc__,
    )
    _add_deployment(parser)
    _add_workload(parser)
    _add_questions(parser)
    parser.set_defaults(run=run, takes_server_flags=False)


def _add_deployment(parser: Any) -> None:
    add = parser.add_argument_group("deployment").add_argument
    add(
        "--model",
        required=True,
        metavar="NAME|DIR",
        help=f"one of {', '.join(KNOWN_SHAPES)}, or a folder with a config.json",
    )
    add("--gpu", required=True, metavar="NAME", help=f"one of {', '.join(GPUS)}")
    add("--tp", type=int, default=1, metavar="N", help="GPUs that share a layer (1)")
    add("--instances", type=_positive_int, default=1, metavar="N", help="servers (1)")
    add("--router", choices=ROUTERS, default="round-robin", help="before several (round-robin)")
    add(
        "--decode",
        choices=("none", "colocated", "separate"),
        default="none",
        help="first tokens only, decode in the same server, or on servers of their own (none)",
    )
    add(
        "--decode-instances",
        type=_positive_int,
        default=1,
        metavar="N",
        help="decode servers, with --decode separate (1)",
    )
    add("--system", default="flowprefill", help=f"what serves: {', '.join(SYSTEMS)} (flowprefill)")
    add("--policy", choices=POLICIES, default=_DEFAULTS.policy, help="of flowprefill (s-edf)")
    add(
        "--granularity",
        choices=GRANULARITIES,
        default=_DEFAULTS.granularity,
        help="of flowprefill (operator)",
    )
    add("--max-chunk-tokens", type=_positive_int, default=_DEFAULTS.max_chunk_tokens, metavar="N")
    add("--max-operator-ms", type=float, default=_DEFAULTS.max_operator_s * 1e3, metavar="MS")
    add("--tpot-slo-ms", type=float, default=_DEFAULTS.tpot_slo_s * 1e3, metavar="MS")
    add("--costs", choices=("auto", "table", "fitted", "roofline"), default="auto")
    add("--table", type=Path, metavar="FILE", help="costs from a table of one's own")
    add("--profile", type=Path, metavar="FILE", help="costs from a server's measured profile")
    add(
        "--host-ms",
        type=float,
        default=HOST_S * 1e3,
        metavar="MS",
        help="on top of each pass for launches and engine; not with --profile (8)",
    )
    add("--cost-factor", type=float, default=1.0, metavar="X", help="on all costs (1)")
    add("--kv-tokens", type=_positive_int, metavar="N", help="KV slots, as the server's log says")
    add("--memory-fraction", type=float, default=MEMORY_FRACTION, metavar="X")


def _add_workload(parser: Any) -> None:
    add = parser.add_argument_group("workload").add_argument
    add(
        "--trace",
        type=Path,
        metavar="FILE",
        help="CSV, Mooncake's JSON Lines, or a result.json of the bench (built-in generator)",
    )
    add("--slo-config", metavar="YAML", help="the server's file of SLO classes")
    add("--slo-scale", type=_positive, default=1.0, metavar="X", help="on all objectives (1)")
    add("--length-scale", type=_positive, default=1.0, metavar="X", help="on all lengths (1)")
    add("--max-new-tokens", type=_positive_int, metavar="N", help="what every client asks for")
    add("--num-requests", type=_positive_int, default=500, metavar="N", help="per instance (500)")
    add("--run-s", type=_positive, default=120.0, metavar="S", help="a run is as long (120)")
    add("--seed", type=int, default=0, metavar="N", help="of the built-in generator (0)")


def _add_questions(parser: Any) -> None:
    add = parser.add_argument_group("questions").add_argument
    add(
        "--rate",
        type=_positive,
        metavar="R",
        help="requests/s that must be met: exit status 1 if not",
    )
    add("--goal", type=_share, default=0.9, metavar="X", help="share of requests in time (0.9)")
    add("--versus", default="sglang", metavar="SYSTEM", help="also this one (sglang)")
    add("--compare", metavar="A,B", help="two systems, request by request, at --rate")
    add("--fail-instances", type=_positive_int, metavar="K", help="so many end halfway, at --rate")
    add("--calibrate", type=Path, metavar="ROWS", help="fit costs to a result.json of the bench")
    add("--calibrate-system", metavar="NAME", help="whose rows of it (the first)")
    add("--speed", action="store_true", help="time the simulator itself at --rate, nothing else")
    add("--out", type=Path, metavar="DIR", help="write JSON, rows, a timeline and pictures")


def run(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Answer; return 1 if a stated objective is missed.

    Raises:
        FlowPrefillError: Something given is wrong or impossible.
    """
    plan = _read(args)
    if args.calibrate is not None:
        found = calibrate(plan.deployment, read_rows(args.calibrate, args.calibrate_system))
        print(report.calibration_text(found))
        plan = replace(plan, deployment=corrected(plan.deployment, found.factor, found.offset_s))
    if args.speed:
        return _time_itself(args, plan)
    if args.compare is not None:
        return _compare(args, plan)
    return _answer(args, plan)


@dataclass(frozen=True, slots=True)
class _Plan:
    deployment: Deployment
    workload: Workload
    goal: float
    length: RunLength

    def num_requests(self, rate_per_s: float) -> int:
        return self.length.num_requests(rate_per_s, self.deployment.num_instances)


def _read(args: argparse.Namespace) -> _Plan:
    worker = read_worker(args)
    workload = read_workload(args)
    longest = max(r.num_input_tokens + r.num_output_tokens for r in workload.requests)
    if worker.num_kv_tokens is not None and longest > worker.num_kv_tokens:
        raise PlanError(
            f"the longest request has {longest} tokens, {worker.name} has room for "
            f"{worker.num_kv_tokens}; raise --tp or --memory-fraction"
        )
    settings = ServerSettings(
        policy=args.policy,
        granularity=args.granularity,
        max_operator_s=args.max_operator_ms / 1e3,
        max_chunk_tokens=args.max_chunk_tokens,
        tpot_slo_s=args.tpot_slo_ms / 1e3,
    )
    deployment = Deployment(
        worker,
        find_system(args.system),
        args.instances,
        settings,
        args.router,
        args.decode_instances if args.decode == "separate" else None,
    )
    return _Plan(deployment, workload, args.goal, RunLength(args.num_requests, args.run_s))


def _answer(args: argparse.Namespace, plan: _Plan) -> int:
    band = max_rate_with_band(plan.deployment, plan.workload, goal=plan.goal, length=plan.length)
    other = replace(plan.deployment, system=find_system(args.versus))
    versus = max_rate(other, plan.workload, goal=plan.goal, length=plan.length)
    at_rate, sizes = None, []
    if args.rate is not None:
        at_rate = _run_at(plan, args.rate, args.fail_instances)
        sizes = [
            min_instances(
                plan.deployment,
                plan.workload,
                args.rate,
                goal=goal,
                length=plan.length,
                max_per_instance=band.nominal.rate_per_s / plan.deployment.num_instances,
            )
            for goal in GOALS
        ]
    answer = report.Answer(
        plan.deployment, plan.workload, plan.goal, band, other.system, versus, at_rate, sizes
    )
    print(report.answer_text(answer))
    if args.out is not None:
        report.write_answer(args.out, answer)
    if at_rate is not None:
        return 0 if at_rate.attained >= plan.goal else 1
    return 0 if band.nominal.run is not None else 1


def _run_at(plan: _Plan, rate_per_s: float, num_failing: int | None) -> Run:
    deployment = plan.deployment
    if num_failing is not None:
        if num_failing >= deployment.num_instances:
            raise PlanError(
                f"--fail-instances {num_failing}: must be fewer than "
                f"{deployment.num_instances} instances"
            )
        half_s = plan.num_requests(rate_per_s) / rate_per_s / 2
        deployment = replace(deployment, failure=Failure(half_s, num_failing))
    run = attempt(deployment, plan.workload, rate_per_s, plan.num_requests(rate_per_s))
    assert run is not None, "nobody asked to give up"
    return run


def _compare(args: argparse.Namespace, plan: _Plan) -> int:
    names = args.compare.split(",")
    if len(names) != 2:
        raise PlanError(f"--compare {args.compare!r}: give two systems, such as sglang,flowprefill")
    rate_per_s = args.rate or plan.workload.rate_per_s
    runs = [
        _run_at(
            replace(plan, deployment=replace(plan.deployment, system=find_system(name))),
            rate_per_s,
            args.fail_instances,
        )
        for name in names
    ]
    paired = compare(*runs)
    print(report.comparison_text(names, runs, paired, plan.deployment, plan.workload))
    if args.out is not None:
        report.write_comparison(args.out, names, runs, paired)
    return 0 if args.rate is None or runs[1].attained >= plan.goal else 1


def _time_itself(args: argparse.Namespace, plan: _Plan) -> int:
    """Say how many requests a second are simulated: this process's own time, not simulated."""
    rate_per_s = args.rate or plan.workload.rate_per_s
    split = replace(plan.deployment, num_decode_instances=args.decode_instances)
    together = replace(plan.deployment, num_decode_instances=None)
    with_decode = replace(plan.workload, first_tokens_only=False)
    for what, deployment, workload in (
        ("first tokens only", together, replace(plan.workload, first_tokens_only=True)),
        ("decode on servers of their own", split, with_decode),
        ("decode in the same servers", together, with_decode),
    ):
        num_requests = plan.num_requests(rate_per_s)
        start_s = process_time()
        run = attempt(deployment, workload, rate_per_s, num_requests)
        assert run is not None, "nobody asked to give up"
        per_s = num_requests / (process_time() - start_s)
        print(f"{what}: {per_s:.0f} requests simulated per second, {run.busy_share:.0%} busy")
    return 0


def _positive(text: str) -> float:
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value
