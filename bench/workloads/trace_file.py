"""Trace files: CSV, plain or gzipped, ``arrival_s,class,input_tokens,output_tokens [, extras]``.

A trace is rejected whole: a bad row would shift the load of everything after it, so the error
names file, line, column and value instead of skipping.
"""

import csv
import gzip
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Literal

from bench.errors import TraceFileError
from bench.workloads.request import TraceRequest

COLUMNS = ("arrival_s", "class", "input_tokens", "output_tokens")


def read_trace(path: Path) -> list[TraceRequest]:
    """Read every request of a trace file; extra columns are ignored.

    Raises:
        TraceFileError: The file cannot be opened, lacks a column, holds no rows, holds a value
            out of range, or its arrivals are not ascending.
    """
    try:
        with _open_text(path, "rt") as lines:
            return _parse(path, lines)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise TraceFileError(f"{path}: cannot be read: {error}") from error


def write_trace(path: Path, requests: Sequence[TraceRequest]) -> None:
    """Write a trace file that ``read_trace`` reads back, gzipped if its name ends in .gz."""
    with _open_text(path, "wt") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        for request in requests:
            writer.writerow(
                (
                    f"{request.arrival_s:.6f}",
                    request.slo_class,
                    request.num_input_tokens,
                    request.num_output_tokens,
                )
            )


def _open_text(path: Path, mode: Literal["rt", "wt"]) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, mode, encoding="utf-8", newline="")
    return path.open(mode, encoding="utf-8", newline="")


def _parse(path: Path, lines: Iterable[str]) -> list[TraceRequest]:
    reader = csv.DictReader(lines)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise TraceFileError(
            f"{path}:1: column {', '.join(map(repr, missing))} missing; "
            f"the header must name {','.join(COLUMNS)}"
        )
    requests: list[TraceRequest] = []
    for row in reader:
        where = f"{path}:{reader.line_num}"
        request = TraceRequest(
            arrival_s=_arrival(where, row["arrival_s"]),
            slo_class=_class_name(where, row["class"]),
            num_input_tokens=_num_tokens(where, row, "input_tokens"),
            num_output_tokens=_num_tokens(where, row, "output_tokens"),
        )
        if requests and request.arrival_s < requests[-1].arrival_s:
            raise TraceFileError(
                f"{where}: column 'arrival_s': {row['arrival_s']} is earlier than the row before "
                f"({requests[-1].arrival_s:g}); arrivals must be ascending"
            )
        requests.append(request)
    if not requests:
        raise TraceFileError(f"{path}: holds no requests")
    return requests


def _arrival(where: str, text: str | None) -> float:
    try:
        arrival_s = float(text or "")
    except ValueError:
        arrival_s = math.nan
    if not (math.isfinite(arrival_s) and arrival_s >= 0):
        raise TraceFileError(
            f"{where}: column 'arrival_s': expected seconds, 0 or more, got {text!r}"
        )
    return arrival_s


def _class_name(where: str, text: str | None) -> str:
    if not text:
        raise TraceFileError(f"{where}: column 'class': expected a class name, got {text!r}")
    return text


def _num_tokens(where: str, row: dict[str, str | None], column: str) -> int:
    text = row[column]
    try:
        num_tokens = int(text or "")
    except ValueError:
        num_tokens = 0
    if num_tokens < 1:
        raise TraceFileError(
            f"{where}: column {column!r}: expected a whole number of at least 1, got {text!r}"
        )
    return num_tokens
