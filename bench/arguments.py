"""Command line options that several commands share, and their way into the library's types."""

import argparse
import math
import shlex
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import UsageError
from bench.replaying.replay import ReplayOptions
from bench.results.provenance import without_folders
from bench.systems.engine import ServerOptions
from bench.systems.named import SYSTEMS, system_named
from bench.workloads.workload import WorkloadSpec

Options = TypeVar("Options")


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def positive_floats(text: str) -> tuple[float, ...]:
    """Parse comma-separated numbers above 0, in the order given."""
    return tuple(positive_float(part) for part in text.split(","))


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return value


def positive_lengths(text: str) -> tuple[int, ...]:
    """Parse comma-separated lengths, and sort them."""
    return tuple(sorted({positive_int(length) for length in text.split(",")}))


def some_of(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of comma-separated names, each known and given once."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(","))
        if not set(names) <= set(known) or len(set(names)) < len(names):
            raise argparse.ArgumentTypeError(
                f"expected some of {','.join(known)}, each once, got {text!r}"
            )
        return names

    return parse


def systems(text: str) -> tuple[str, ...]:
    """Parse comma-separated systems, each given once."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        _check_system(name)
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"expected each system once, got {text!r}")
    return names


def _check_system(name: str) -> None:
    try:
        system_named(name)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def class_slo(text: str) -> tuple[str, float]:
    """Parse ``CLASS=SECONDS``."""
    name, _, seconds = text.partition("=")
    return name, positive_float(seconds)


def system_flags(text: str) -> tuple[str, tuple[str, ...]]:
    """Parse ``SYSTEM=FLAGS``."""
    name, _, flags = text.partition("=")
    _check_system(name)
    return name, tuple(shlex.split(flags))


def add_option_fields(parser: argparse.ArgumentParser, title: str, defaults: Any) -> None:
    """Add a flag for each field of a dataclass of numbers, with its value as default.

    Numbers are above 0, but for the field ``seed``.
    """
    group = parser.add_argument_group(title)
    for spec in fields(defaults):
        default = getattr(defaults, spec.name)
        kind = positive_int if isinstance(default, int) else positive_float
        group.add_argument(
            "--" + spec.name.replace("_", "-"),
            type=int if spec.name == "seed" else kind,
            default=default,
        )


def options_of(args: argparse.Namespace, kind: type[Options]) -> Options:
    """Collect what ``add_option_fields`` has added."""
    return kind(**{spec.name: getattr(args, spec.name) for spec in fields(kind)})


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides which requests arrive when."""
    group = parser.add_argument_group("workload")
    group.add_argument("--trace", type=Path, help="trace file; default: the built-in generator")
    group.add_argument("--num-requests", type=positive_int, help="use the first N; default: all")
    group.add_argument(
        "--rate",
        type=positive_float,
        help="offered requests/s, by scaling all gaps; default: as in the trace",
    )
    group.add_argument(
        "--length-scale", type=positive_float, default=1.0, help="factor on prompts and outputs"
    )
    group.add_argument("--seed", type=int, default=0, help="of generator and prompts")
    group.add_argument(
        "--arrival-cv",
        type=positive_float,
        help="draw arrivals: coefficient of variation of the gaps, 1 for Poisson, more for "
        "burstier gamma gaps; default: as in the trace",
    )
    group.add_argument(
        "--shared-prefix",
        type=_share,
        default=0.0,
        help="share of every prompt that it has in common with others (default: %(default)s)",
    )
    group.add_argument(
        "--num-prefixes",
        type=positive_int,
        default=8,
        help="how many different prefixes --shared-prefix draws from (default: %(default)s)",
    )


def add_slo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides which TTFT counts as met."""
    group = parser.add_argument_group("objectives")
    group.add_argument(
        "--slo-scale", type=positive_float, default=1.0, help="factor on every TTFT SLO"
    )
    group.add_argument(
        "--slo",
        type=class_slo,
        action="append",
        default=[],
        metavar="CLASS=SECONDS",
        help="unscaled TTFT SLO of a class that the authors' table lacks; may be repeated",
    )


def add_replay_arguments(parser: argparse.ArgumentParser, *, send_class: bool) -> None:
    """Add what decides how requests are sent.

    Args:
        parser: Of the command.
        send_class: Default of ``--send-class``; servers that the bench starts know the classes.
    """
    group = parser.add_argument_group("replay")
    group.add_argument(
        "--original-output-lengths",
        action="store_true",
        help="generate as many tokens as the trace says; default: 1, which isolates prefills",
    )
    group.add_argument(
        "--tpot-slo-ms",
        type=positive_float,
        help="mean time per output token that a request must also keep, with "
        "--original-output-lengths; default: TTFT alone counts",
    )
    group.add_argument(
        "--send-slo",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="tell the server each request's SLO",
    )
    group.add_argument(
        "--send-class",
        action=argparse.BooleanOptionalAction,
        default=send_class,
        help="tell the server each request's class, which it must know (default: %(default)s)",
    )
    group.add_argument(
        "--drain-timeout-s",
        type=positive_float,
        default=300.0,
        help="wait this long after the last arrival; later answers are misses",
    )


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides which servers are started, and how."""
    group = parser.add_argument_group("servers")
    group.add_argument(
        "--systems",
        type=systems,
        default=("flowprefill", "stock"),
        help=f"comma-separated, in the order to measure: {','.join(SYSTEMS)}; flags may follow a "
        "name, as in stock+chunked-prefill-size=512",
    )
    group.add_argument("--model-path", help="default: the embedded model")
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    group.add_argument("--dtype", help="default: that of the device")
    group.add_argument(
        "--prefix-cache",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="keep the prefix cache on; it can hit only where prompts share a prefix",
    )
    group.add_argument(
        "--server-flags",
        type=shlex.split,
        default=[],
        help="more flags, for every system; engines have flags of their own",
    )
    group.add_argument(
        "--flags-for",
        type=system_flags,
        action="append",
        default=[],
        metavar="SYSTEM=FLAGS",
        help="more flags, for one system; may be repeated",
    )
    group.add_argument("--startup-timeout-s", type=positive_float, default=300.0)


def workload_spec(args: argparse.Namespace) -> WorkloadSpec:
    """Collect the workload options."""
    return WorkloadSpec(
        trace=args.trace,
        num_requests=args.num_requests,
        rate_per_s=args.rate,
        length_scale=args.length_scale,
        seed=args.seed,
        arrival_cv=args.arrival_cv,
        shared_prefix=args.shared_prefix,
        num_prefixes=args.num_prefixes,
    )


def replay_options(args: argparse.Namespace) -> ReplayOptions:
    """Collect the replay options."""
    return ReplayOptions(
        original_output_lengths=args.original_output_lengths,
        send_slo=args.send_slo,
        send_class=args.send_class,
        slo_tpot_s=None if args.tpot_slo_ms is None else args.tpot_slo_ms / 1000,
        seed=args.seed,
        drain_timeout_s=args.drain_timeout_s,
    )


def server_options(args: argparse.Namespace, slo_config: Path | None = None) -> ServerOptions:
    """Collect the server options, and add the file of SLO classes."""
    return ServerOptions(
        model_path=args.model_path,
        device=args.device,
        dtype=args.dtype,
        use_prefix_cache=args.prefix_cache,
        slo_config=slo_config,
        flags=tuple(args.server_flags),
        flags_for=dict(args.flags_for),
        startup_timeout_s=args.startup_timeout_s,
    )


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return every option as JSON-safe data without folders of this machine."""
    return {name: _json_safe(value) for name, value in sorted(vars(args).items()) if name != "run"}


def _json_safe(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, str | Path):
        return without_folders([str(value)])[0]
    return value
