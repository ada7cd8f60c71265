"""``python -m sglang_flowprefill bench``: the bench's commands, wherever this package is installed.

The bench is the library ``bench`` in a checkout of the repository. It ships as
``sglang_flowprefill.bench``, so that an installation does not take a name as common as ``bench``
from everybody else; ``bench_module``, and nothing else, makes it importable under its own name.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from sglang_flowprefill.errors import BenchUnavailableError

_SHIPPED_AS = "sglang_flowprefill.bench"


def add_command(commands: Any) -> None:
    """Add the command to those of ``argparse``."""
    parser = commands.add_parser(
        "bench",
        help="measure servers: goodput, comparisons, ablations, reports (bench --help lists them)",
        add_help=False,  # the bench has its own
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run, takes_server_flags=True)


def run(args: argparse.Namespace, unparsed: Sequence[str]) -> None:
    """Run ``python -m bench`` with the remaining arguments.

    Raises:
        BenchUnavailableError: Its packages are not installed.
        SystemExit: Always else, with the bench's exit status.
    """
    main = _bench_main()
    sys.argv[1:] = [*unparsed, *args.arguments]  # results state their command line
    raise SystemExit(main())


def bench_module(name: str) -> Any:
    """Return a module of the bench by its name there, such as ``workloads.trace_file``.

    Raises:
        ModuleNotFoundError: Packages that it needs are not installed.
    """
    sys.modules.setdefault("bench", importlib.import_module(_SHIPPED_AS))
    return importlib.import_module(f"bench.{name}")


def _bench_main() -> Any:
    try:
        return bench_module("__main__").main
    except ModuleNotFoundError as error:
        raise BenchUnavailableError(
            f"the bench cannot be loaded: {error}; install what it needs with "
            "pip install 'sglang-flowprefill[bench]'"
        ) from error
