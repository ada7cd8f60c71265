"""``python -m sglang_flowprefill COMMAND``. The server itself is ``.launch_server``."""

import argparse
import sys
from collections.abc import Sequence

from sglang_flowprefill.commands import bench, doctor, patch, profile, simulate, top
from sglang_flowprefill.errors import FlowPrefillError


def command_line() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m sglang_flowprefill", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (bench, doctor, patch, profile, simulate, top):
        command.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = command_line()
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_server_flags:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status: int | None = args.run(args, rest)
    except FlowPrefillError as error:
        print(f"flowprefill: error: {error}", file=sys.stderr)
        return 1
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
