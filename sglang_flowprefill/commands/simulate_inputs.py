"""What ``simulate`` reads: traces, rows of the bench, class files, models, costs."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang_flowprefill.api.class_file import ServerSlo, load_slo_classes
from sglang_flowprefill.api.classes import SloClasses
from sglang_flowprefill.commands.bench import bench_module
from sglang_flowprefill.core import Slo
from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.sim.costs import FittedCost, PassCost, RooflineCost, costs_for
from sglang_flowprefill.sim.costs.fitted import predictor_of
from sglang_flowprefill.sim.costs.pass_cost import CorrectedCost
from sglang_flowprefill.sim.costs.profile import read_profile_cost
from sglang_flowprefill.sim.costs.table import read_table, shipped_names
from sglang_flowprefill.sim.deployment import Memory, Worker
from sglang_flowprefill.sim.gpus import Gpu, find_gpu
from sglang_flowprefill.sim.shapes import ModelShape, find_shape
from sglang_flowprefill.sim.study.calibration import MeasuredRow
from sglang_flowprefill.sim.workload import TracedRequest, Workload

AUTHORS_SLOS_S: Mapping[str, Mapping[str, float]] = {
    "llama-3.1-8b": {"text": 0.25, "image": 0.5, "search": 4.0, "file": 6.0},
    "qwen2.5-14b": {"text": 0.4, "image": 0.8, "search": 6.5, "file": 9.0},
    "llama-3.1-70b": {"text": 1.0, "image": 2.0, "search": 15.0, "file": 18.0},
    "qwen3-30b-a3b": {"text": 0.4, "image": 0.8, "search": 6.5, "file": 9.0},
}
"""TTFT objectives of the QwenTrace classes. 8B and 14B: the authors' released scripts; 70B: a port
that quotes their table; 30B-A3B: unknown, those of 14B are assumed."""


def read_worker(args: argparse.Namespace) -> Worker:
    """Return the hardware that the flags describe.

    Raises:
        PlanError: There is no such model or GPU, or the one is too large for the other.
    """
    shape = find_shape(args.model)
    gpu = find_gpu(args.gpu)
    memory = Memory(args.kv_tokens, args.memory_fraction)
    return Worker.of(shape, gpu, args.tp, _cost(args, shape, gpu), memory)


def _cost(args: argparse.Namespace, shape: ModelShape, gpu: Gpu) -> PassCost:
    cost: PassCost
    host_s = args.host_ms / 1e3
    if args.profile is not None:
        cost, host_s = read_profile_cost(args.profile), 0.0
    elif args.table is not None:
        cost = read_table(args.table)
    elif args.costs == "roofline":
        cost = RooflineCost(shape, gpu, args.tp)
    else:
        cost = costs_for(shape, gpu, args.tp)
        if args.costs == "table" and isinstance(cost, RooflineCost):
            raise PlanError(
                f"no table of {shape.name} on {args.tp} x {gpu.name}; there are "
                f"{', '.join(shipped_names())}"
            )
        if args.costs == "fitted":
            cost = FittedCost(predictor_of(cost), f"a line fitted to: {cost.source}")
    parts = [] if args.cost_factor == 1.0 else [f"times {args.cost_factor:g} (given)"]
    if host_s:
        parts.append(f"plus {host_s * 1e3:g} ms a pass for launches and engine (assumed)")
    if args.decode != "none" and not cost.decode_s(1, 1):
        raise PlanError(f"--decode {args.decode}: these costs know no decode steps: {cost.source}")
    return CorrectedCost(cost, args.cost_factor, host_s, because=", ".join(parts))


def read_workload(args: argparse.Namespace) -> Workload:
    """Return the requests and their objectives.

    Raises:
        PlanError: A file is malformed, or a class has no objective.
    """
    requests, origin = _requests(args)
    if args.length_scale != 1.0:
        requests = [_scaled(request, args.length_scale) for request in requests]
        origin += f", lengths x {args.length_scale:g}"
    requests, slos = _with_slos(args, requests)
    workload = Workload(
        requests,
        slos,
        origin,
        max_new_tokens=args.max_new_tokens,
        first_tokens_only=args.decode == "none",
    )
    return workload if args.slo_scale == 1.0 else workload.with_slo_scale(args.slo_scale)


def _scaled(request: TracedRequest, factor: float) -> TracedRequest:
    return replace(
        request,
        num_input_tokens=max(1, round(request.num_input_tokens * factor)),
        num_output_tokens=max(1, round(request.num_output_tokens * factor)),
        prefix=tuple((i, max(1, round(num * factor))) for i, num in request.prefix),
    )


def _requests(args: argparse.Namespace) -> tuple[list[TracedRequest], str]:
    if args.trace is None:
        drawn = bench_module("workloads.qwentrace_like").generate_requests(1000, args.seed)
        return [_traced(r) for r in drawn], "built-in generator (QwenTrace-like)"
    path: Path = args.trace
    if path.suffix == ".json":
        rows = read_rows(path)
        requests = [
            TracedRequest(r.sent_s, r.class_name, r.num_input_tokens, r.num_output_tokens)
            for r in sorted(rows, key=lambda row: row.sent_s)
        ]
        return requests, f"{path.name} (rows of a measurement)"
    reader = bench_module("workloads.trace_file")
    try:
        requests = [_traced(r) for r in reader.read_trace(path)]
    except bench_module("errors").TraceFileError as error:
        raise PlanError(str(error)) from error
    return requests, path.name


def _traced(request: Any) -> TracedRequest:
    return TracedRequest(
        request.arrival_s,
        request.slo_class,
        request.num_input_tokens,
        request.num_output_tokens,
        tuple((block.block_id, block.num_tokens) for block in request.prefix),
    )


def _with_slos(
    args: argparse.Namespace, requests: Sequence[TracedRequest]
) -> tuple[list[TracedRequest], dict[str, Slo]]:
    """Give every request a class with an objective."""
    present = dict.fromkeys(request.class_name for request in requests)
    if args.slo_config is None:
        known = AUTHORS_SLOS_S.get(args.model.lower(), {})
        return list(requests), {n: Slo(known[n], n) for n in present if n in known}
    classes = load_slo_classes(args.slo_config, ServerSlo(1000.0))
    with_class = [_with_class(request, classes) for request in requests]
    found = {request.class_name for request in with_class}
    empty = [name for name in classes.by_name if name not in found]
    if empty:
        names = ", ".join(map(repr, empty))
        print(
            f"simulate: no request is of class {names} of {args.slo_config}: nothing is said of it",
            file=sys.stderr,
        )
    slos = {name: classes.slo(name) for name in classes.by_name if name in found}
    if classes.default.class_name in found:
        slos[classes.default.class_name] = classes.default
    return with_class, slos


def _with_class(request: TracedRequest, classes: SloClasses) -> TracedRequest:
    """Choose a class as the server would: the one named, else the first rule that holds."""
    if request.class_name in classes.by_name:
        return request
    for rule in classes.rules:
        is_by_length = not rule.headers and rule.model is None
        if is_by_length and rule.holds_for_length(request.num_input_tokens):
            return replace(request, class_name=rule.class_name)
    if classes.default.class_name in classes.by_name:
        return replace(request, class_name=classes.default.class_name)
    return request


def read_rows(path: Path, system: str | None = None) -> list[MeasuredRow]:
    """Read the rows of one system from a result of the bench.

    Raises:
        PlanError: The file is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PlanError(f"{path}: not JSON: {error}") from error
    groups = dict(_groups_of_rows(document, ""))
    if not groups:
        raise PlanError(f"{path}: holds no rows of requests; give a result.json of the bench")
    name = next(iter(groups)) if system is None else system
    if name not in groups:
        raise PlanError(f"{path}: no system {name!r}; there are {', '.join(groups)}")
    return [_measured(path, index, row) for index, row in enumerate(groups[name])]


def _groups_of_rows(document: Any, name: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield every list of rows in a result with the key that it stands under."""
    if not isinstance(document, dict):
        return
    rows = document.get("rows")
    if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "slo_class" in rows[0]:
        yield name, rows
    for key, value in document.items():
        if key != "rows":
            yield from _groups_of_rows(value, key)


def _measured(path: Path, index: int, row: Mapping[str, Any]) -> MeasuredRow:
    try:
        sent_s = row["sent_s"]
        first_token_s = None if row.get("error") else row.get("first_token_s")
        return MeasuredRow(
            str(row["slo_class"]),
            float(sent_s),
            int(row["num_input_tokens"]),
            int(row["num_output_tokens"]),
            float(row["slo_ttft_s"]),
            math.inf if first_token_s is None else float(first_token_s) - float(sent_s),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"{path}: row {index}: {error!r}") from error
