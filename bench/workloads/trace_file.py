"""Trace files, plain or gzipped: CSV ``arrival_s,class,input_tokens,output_tokens [, extras]``.

Or JSON Lines with the same names, ``hash_ids`` for prompts that share prefixes (Mooncake's way:
one identity for each 512 tokens), and classes by length where ``class`` is absent.

A trace is rejected whole: a bad row would shift the load of everything after it, so the error
names file, line, column and value instead of skipping.
"""

import csv
import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from bench.errors import TraceFileError
from bench.workloads.request import PrefixBlock, TraceRequest

COLUMNS = ("arrival_s", "class", "input_tokens", "output_tokens")
_BLOCK_TOKENS = 512
# For traces without classes: (prompts shorter than this, class).
_CLASS_BY_LENGTH = ((4096, "under-4k"), (16384, "4k-16k"), (math.inf, "over-16k"))


def read_trace(path: Path) -> list[TraceRequest]:
    """Read every request of a trace file; extra columns are ignored.

    Raises:
        TraceFileError: The file cannot be opened, lacks a column, holds no rows, holds a value
            out of range, or its arrivals are not ascending.
    """
    try:
        with _open_text(path, "rt") as lines:
            is_json = ".jsonl" in path.suffixes
            return _checked(path, _json_rows(path, lines) if is_json else _csv_rows(path, lines))
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


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(lines)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise TraceFileError(
            f"{path}:1: column {', '.join(map(repr, missing))} missing; "
            f"the header must name {','.join(COLUMNS)}"
        )
    for row in reader:
        yield reader.line_num, row


def _json_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            num_tokens = row.get("input_tokens")
            if "class" not in row and isinstance(num_tokens, int):
                row["class"] = next(name for end, name in _CLASS_BY_LENGTH if num_tokens < end)
        except (ValueError, AttributeError) as error:
            raise TraceFileError(f"{path}:{number}: not a JSON object: {error}") from error
        yield number, row


def _checked(path: Path, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> list[TraceRequest]:
    requests: list[TraceRequest] = []
    for number, row in rows:
        where = f"{path}:{number}"
        num_input_tokens = _num_tokens(where, row, "input_tokens")
        request = TraceRequest(
            arrival_s=_arrival(where, row.get("arrival_s")),
            slo_class=_class_name(where, row.get("class")),
            num_input_tokens=num_input_tokens,
            num_output_tokens=_num_tokens(where, row, "output_tokens"),
            prefix=_prefix(where, row.get("hash_ids"), num_input_tokens),
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


def _arrival(where: str, text: Any) -> float:
    try:
        arrival_s = float(text if text is not None else "")
    except (ValueError, TypeError):
        arrival_s = math.nan
    if not (math.isfinite(arrival_s) and arrival_s >= 0):
        raise TraceFileError(
            f"{where}: column 'arrival_s': expected seconds, 0 or more, got {text!r}"
        )
    return arrival_s


def _class_name(where: str, text: Any) -> str:
    if not text or not isinstance(text, str):
        raise TraceFileError(f"{where}: column 'class': expected a class name, got {text!r}")
    return text


def _prefix(where: str, hash_ids: Any, num_input_tokens: int) -> tuple[PrefixBlock, ...]:
    if hash_ids is None or isinstance(hash_ids, str):  # a CSV file cannot hold any
        return ()
    if not isinstance(hash_ids, list) or not all(isinstance(i, int) and i >= 0 for i in hash_ids):
        raise TraceFileError(
            f"{where}: column 'hash_ids': expected a list of whole numbers, got {hash_ids!r}"
        )
    # The last block may end beyond the prompt.
    lengths = [
        min(_BLOCK_TOKENS, num_input_tokens - _BLOCK_TOKENS * i) for i in range(len(hash_ids))
    ]
    return tuple(PrefixBlock(i, n) for i, n in zip(hash_ids, lengths, strict=True) if n > 0)


def _num_tokens(where: str, row: Mapping[str, Any], column: str) -> int:
    text = row.get(column)
    try:
        num_tokens = int(str(text))
    except ValueError:
        num_tokens = 0
    if num_tokens < 1:
        raise TraceFileError(
            f"{where}: column {column!r}: expected a whole number of at least 1, got {text!r}"
        )
    return num_tokens
