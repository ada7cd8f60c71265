"""Options of ``bench gpu``."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.cuts import CUTS, QUICK_CUTS, Cut

FULL_LENGTHS = (8192, 32768, 2048, 4096, 1024, 16384)
QUICK_LENGTHS = (8192, 2048, 32768)
"""Most telling first: a run that is cut short has measured these."""


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """What to measure, and for how long.

    Attributes:
        lengths: Prompt lengths, in this order.
        num_layers: Of the model.
        num_rounds: Undisturbed forward passes of each cut at each length; cuts take turns.
        blocking_s: Seconds of arrivals for each cut at each length; three times that above 8192.
        cuts: Ways of cutting.
        max_s: No further length is begun after so many seconds.
        seed: Of the arrivals and the weights.
        out: Folder of the result.
    """

    lengths: tuple[int, ...]
    num_layers: int
    num_rounds: int
    blocking_s: float
    cuts: tuple[Cut, ...]
    max_s: float
    seed: int
    out: Path


def add_gpu_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three lengths, fewer cuts and shorter: 90 seconds on an H200",
    )
    parser.add_argument("--lengths", type=int, nargs="+", help="prompt lengths, in this order")
    parser.add_argument("--layers", type=int, default=8, help="of the model's 32 (default: 8)")
    parser.add_argument("--rounds", type=int, help="undisturbed passes (default: 4; quick: 3)")
    parser.add_argument(
        "--blocking-s", type=float, help="arrivals per cut and length (default: 0.6; quick: 0.4)"
    )
    parser.add_argument(
        "--max-s", type=float, default=150.0, help="begin no further length after (default: 150)"
    )
    parser.add_argument("--seed", type=int, default=0)


def gpu_options(args: argparse.Namespace) -> GpuOptions:
    """Collect the options."""
    lengths = args.lengths or (QUICK_LENGTHS if args.quick else FULL_LENGTHS)
    return GpuOptions(
        lengths=tuple(lengths),
        num_layers=args.layers,
        num_rounds=args.rounds or (3 if args.quick else 4),
        blocking_s=args.blocking_s or (0.4 if args.quick else 0.6),
        cuts=QUICK_CUTS if args.quick else CUTS,
        max_s=args.max_s,
        seed=args.seed,
        out=args.out,
    )
