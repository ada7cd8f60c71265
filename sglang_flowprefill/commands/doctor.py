"""``python -m sglang_flowprefill doctor``: will FlowPrefill serve here, and if not, why?

Takes the flags that the server would be started with. Exit status: 0 if nothing stands in the
way (warnings included), 1 if something does, 2 for a wrong command line of its own.
"""

import argparse
import contextlib
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sglang_flowprefill import __version__
from sglang_flowprefill.checks import Finding, Status, fail
from sglang_flowprefill.checks.installation import (
    check_device,
    check_kernels,
    check_packages,
    check_plugin,
    check_sglang_version,
)
from sglang_flowprefill.checks.server import check_server
from sglang_flowprefill.errors import ConfigError, FlowPrefillError, ModelConversionError
from sglang_flowprefill.launch_server import complete_arguments

SCHEMA = 1
"""Of the JSON output; docs/reference/doctor.md says what may change under one number."""

_NO_MODEL = "no-model-named"
_COLOURS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


def add_command(commands: Any) -> None:
    """Add the command to those of ``argparse``."""
    parser = commands.add_parser(
        "doctor",
        help="tell whether FlowPrefill will serve here, and what is in the way",
        description=__doc__,
        epilog="All other flags are those of python -m sglang_flowprefill.launch_server.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--url", help="also ask a running server, such as http://127.0.0.1:30000")
    parser.add_argument("--api-key", help="the server's key; also passed on as its flag")
    parser.add_argument(
        "--launch",
        metavar="LINE",
        help="judge only this launch line of SGLang's, by its flags; loads no model",
    )
    parser.add_argument(
        "--launch-file",
        metavar="FILE",
        help="judge every launch line of a file; - reads them from standard input",
    )
    parser.set_defaults(run=run, takes_server_flags=True)


def run(args: argparse.Namespace, server_flags: Sequence[str]) -> int:
    """Run all checks and print what they found; return the exit status.

    Raises:
        ConfigError: A file of launch lines cannot be read.
    """
    if args.launch is not None or args.launch_file is not None:
        return _judge(args)
    flags = [*server_flags, *(["--api-key", args.api_key] if args.api_key else [])]
    with _only_our_output():
        findings = list(_findings(flags))
        if args.url is not None:
            findings.append(check_server(args.url, args.api_key))
    if args.json:
        print(json.dumps(as_record(findings), indent=2))
    else:
        Console().print(table_of(findings))
    return int(any(finding.status is Status.FAIL for finding in findings))


def _judge(args: argparse.Namespace) -> int:
    """Judge launch lines; one JSON object or one block of text for each."""
    lines = [] if args.launch is None else [args.launch]
    with _only_our_output():
        from sglang_flowprefill.adapter.launch_lines import judge_lines, lines_of  # noqa: PLC0415

        if args.launch_file is not None:
            lines += lines_of(_text_of(args.launch_file))
        answers = list(judge_lines(lines))
    for answer in answers:
        print(json.dumps(answer.as_record()) if args.json else _text_of_answer(answer))
    if not args.json:
        verdicts = Counter(answer.verdict for answer in answers)
        counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
        print(f"{len(answers)} launch lines: {counts or 'none in it'}")
    return int(any(answer.verdict == "refused" for answer in answers))


def _text_of(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--launch-file", file, f"cannot read the file: {error}") from error


def _text_of_answer(answer: Any) -> str:
    """Return a verdict for people: what is refused or taken over, and what to write instead."""
    texts = [f"{answer.verdict}: {answer.line}"]
    if answer.problem:
        texts.append(f"  {answer.problem}")
    for flag, found in answer.flags.items():
        if found.answer != "honoured" or found.proof == "only read":
            instead = f"; instead: {found.instead}" if found.instead else ""
            head = f"  {flag} {found.value}".rstrip()
            texts.append(f"{head}: {found.answer} ({found.proof}): {found.why}{instead}")
    return "\n".join([*texts, *(f"  note: {note}" for note in answer.notes)])


def as_record(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as plain values, in the documented form."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "ok": not any(finding.status is Status.FAIL for finding in findings),
        "checks": [asdict(finding) | {"status": finding.status.value} for finding in findings],
    }


def table_of(findings: Sequence[Finding]) -> Table:
    """Return the findings as a table for people."""
    table = Table(title=f"sglang-flowprefill {__version__}", show_lines=True)
    for heading in ("check", "status", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        status = Text(finding.status.value, style=_COLOURS[finding.status])
        table.add_row(finding.check, status, Text(finding.found), Text(finding.advice))
    return table


def _findings(flags: Sequence[str]) -> Iterator[Finding]:
    """Run the checks, cheapest first; those that need SGLang only where it is the right one."""
    from sglang_flowprefill.adapter import compat  # noqa: PLC0415 (loads no SGLang)

    version = check_sglang_version(compat.SUPPORTED_VERSIONS)
    yield version
    yield check_packages(compat.TESTED_PACKAGES)
    yield check_plugin()
    yield check_device()
    kernels = check_kernels(_kernel_build)
    yield kernels
    if version.status is Status.FAIL:
        return
    build = _kernel_build() if kernels.found.startswith("compiled") else None
    yield from _findings_of_the_server(flags, build)


def _findings_of_the_server(flags: Sequence[str], build: str | None) -> Iterator[Finding]:
    has_model = True
    try:
        try:
            arguments = complete_arguments(flags)
        except ModelConversionError:  # none is named, and the embedded one cannot be had
            has_model = False
            arguments = complete_arguments([*flags, "--model-path", _NO_MODEL])
        from sglang_flowprefill.adapter.doctor import findings  # noqa: PLC0415 (loads SGLang)
    except (FlowPrefillError, ImportError) as error:
        yield fail("flags", str(error), "the message says what to do")
        return
    yield from findings(arguments, build, has_model=has_model)


def _kernel_build() -> str:
    from sglang_flowprefill.kernels.cpu.native import build_native  # noqa: PLC0415 (loads torch)

    return build_native().version


@contextlib.contextmanager
def _only_our_output() -> Iterator[None]:
    """Keep what SGLang prints and logs while it is imported out of ours."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
