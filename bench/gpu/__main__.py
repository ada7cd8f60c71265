"""``python -m bench.gpu``: the command alone, without what the other commands import."""

import argparse
import asyncio
import sys
from pathlib import Path

from bench.errors import BenchError
from bench.gpu.command import run_gpu
from bench.gpu.options import add_gpu_arguments


def main() -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=run_gpu.__doc__)
    add_gpu_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("bench-results") / "gpu")
    try:
        asyncio.run(run_gpu(parser.parse_args()))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
