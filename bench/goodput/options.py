"""What ``goodput`` searches, and how the command line says so."""

import argparse
from dataclasses import dataclass, replace
from math import ceil

from bench.arguments import positive_float, positive_floats, positive_int
from bench.goodput.result import DEFAULT_RESOLUTION
from bench.workloads.workload import Workload, WorkloadSpec


def shares(text: str) -> tuple[float, ...]:
    """Parse comma-separated shares, lowest first."""
    values = tuple(sorted(positive_floats(text)))
    if values[-1] > 1:
        raise argparse.ArgumentTypeError(f"expected shares up to 1, such as 0.9, got {text!r}")
    return values


def _start_rate(text: str) -> tuple[str, float]:
    name, _, rate = text.rpartition("=")  # names may hold equals signs
    return name, positive_float(rate)


def add_goodput_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides what is searched, and how closely."""
    group = parser.add_argument_group("goodput")
    group.add_argument(
        "--goals",
        type=shares,
        default=(0.9,),
        help="shares of requests that must meet their objective (default: 0.9)",
    )
    group.add_argument(
        "--every-class",
        action="store_true",
        help="search too for the rate at which each class meets the goal by itself",
    )
    group.add_argument(
        "--slo-scales",
        type=positive_floats,
        default=(1.0,),
        help="factors on every objective, each with its own search (default: 1)",
    )
    group.add_argument(
        "--num-seeds",
        type=positive_int,
        default=3,
        help="workloads to search with, the same for every system (default: %(default)s)",
    )
    group.add_argument(
        "--start-rate",
        type=_start_rate,
        action="append",
        default=[],
        metavar="SYSTEM=RATE",
        help="requests/s at which to begin, where known: it saves probes; may be repeated",
    )
    group.add_argument(
        "--resolution",
        type=positive_float,
        default=DEFAULT_RESOLUTION,
        help="a search ends when its bracket is narrower than this share (default: %(default)s)",
    )
    group.add_argument(
        "--window-s",
        type=positive_float,
        default=120.0,
        help="for how long requests arrive in a probe (default: %(default)s)",
    )
    group.add_argument(
        "--min-requests",
        type=positive_int,
        default=100,
        help="of a probe, however low its rate (default: %(default)s)",
    )
    group.add_argument(
        "--lowest-rate",
        type=positive_float,
        default=0.02,
        help="requests/s; a system that fails here has no goodput (default: %(default)s)",
    )
    group.add_argument(
        "--probe-rates",
        type=positive_floats,
        default=(),
        help="requests/s to replay at too, whole, at every objective scale with the first seed: "
        "what curves are drawn from (default: none)",
    )
    group.add_argument(
        "--equal-load",
        action="store_true",
        help="let the first system replay too what the best peer bore at most, request by request, "
        "so that classes can be compared under one load",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the result in --out; searches that ended are kept",
    )
    parser.set_defaults(num_requests=None, rate=None)


@dataclass(frozen=True, slots=True)
class ProbedWorkload:
    """The requests of a probe, by rate and seed.

    A probe takes a sample of the trace, or of several rounds of it, so that the mix of classes and
    lengths is the same at every rate and for every seed: a low rate would otherwise be judged by
    the few requests at the head of the trace, and a high one by a window that is over too soon.

    Attributes:
        spec: Everything else of the workload.
        window_s: For how long requests arrive.
        min_requests: However low the rate.
        num_seeds: Which a trace is divided by, so that each seed has a window of its own.
    """

    spec: WorkloadSpec
    window_s: float
    min_requests: int
    num_seeds: int

    def build(self, rate_per_s: float, seed: int) -> Workload:
        """Return the requests at this rate; the generator draws others for each seed.

        A trace shorter than the window is replayed as often as the window asks for.

        Raises:
            BenchError: The trace is malformed.
        """
        spec = replace(
            self.spec,
            sample_size=max(self.min_requests, ceil(rate_per_s * self.window_s)),
            rate_per_s=rate_per_s,
            seed=seed,
            begin_at=seed / self.num_seeds % 1,
        )
        return spec.build()
