"""What a comparison leaves behind: a table to read, a JSON file to keep, a title that is honest.

The JSON file holds everything needed to judge or repeat the measurement: provenance, full
configuration, what each server said of itself, and the raw row of every request.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bench.errors import BenchError, UsageError
from bench.replaying.metrics import ReplaySummary, TtftSummary, summarise
from bench.results.provenance import provenance

if TYPE_CHECKING:  # the client's packages are not needed where nothing is sent
    from bench.replaying.replay import RequestRow
    from bench.systems.servers import ServerDescription

SCHEMA_VERSION = 1
# The client shares the machine with the server; beyond this its own lag blurs the result.
_NOTABLE_LATENESS_S = 0.05
# Without a terminal, rich assumes 80 columns and cuts a table of three systems.
_PIPED_WIDTH = 140


@dataclass(frozen=True, slots=True)
class SystemRun:
    """One system's part of a comparison.

    Attributes:
        system: Its name.
        server: How it was started and configured.
        rows: One per request, in workload order.
    """

    system: str
    server: "ServerDescription"
    rows: "list[RequestRow]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same requests replayed against one or more systems.

    Attributes:
        origin: Of the workload, with its caveat.
        rate_per_s: Offered rate, None where all requests arrive at once.
        length_scale: Factor on the lengths of the trace.
        slo_scale: Factor on the objectives.
        config: Full configuration, as given.
        seed: Of prompts and generator.
        runs: One per system, in the order measured.
    """

    origin: str
    rate_per_s: float | None
    length_scale: float
    slo_scale: float
    config: dict[str, Any]
    seed: int
    runs: list[SystemRun]

    @property
    def title(self) -> str:
        """Say what was replayed, how it was scaled, and on what."""
        rate = "all at once" if self.rate_per_s is None else f"{self.rate_per_s:.2f} req/s"
        parts = [f"{len(self.runs[0].rows)} requests of {self.origin}", rate]
        if self.length_scale != 1:
            parts.append(f"lengths x{self.length_scale:g}")
        if self.slo_scale != 1:
            parts.append(f"SLOs x{self.slo_scale:g}")
        return ", ".join([*parts, measured_on(run.server for run in self.runs)])

    def summaries(self) -> dict[str, ReplaySummary]:
        """Summarise each system's rows."""
        return {run.system: summarise(run.rows) for run in self.runs}


def measured_on(servers: "Iterable[ServerDescription]") -> str:
    """Name the kind of device that the servers report, for titles."""
    devices = sorted({str(server.server_info.get("device", "unknown")) for server in servers})
    kinds = ["a CPU" if device == "cpu" else f"device {device}" for device in devices]
    return f"measured on {' and '.join(kinds)}"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the systems side by side, classes as rows, and what qualifies the numbers."""
    summaries = comparison.summaries()
    console.print(_table(comparison, summaries))
    for system, summary in summaries.items():
        _print_notes(system, summary, comparison, console)


def _table(comparison: Comparison, summaries: Mapping[str, ReplaySummary]) -> Table:
    table = Table(title=comparison.title)
    table.add_column("class")
    table.add_column("n", justify="right")
    table.add_column("SLO s", justify="right")
    for system in summaries:
        table.add_column(f"{system}\nTTFT p50 / p99 s\nattained", justify="right")
    slos_s = {row.slo_class: row.slo_ttft_s for row in comparison.runs[0].rows}
    for name, summary in next(iter(summaries.values())).classes.items():
        cells = [_cell(s.classes[name]) for s in summaries.values()]
        table.add_row(name, str(summary.num_requests), f"{slos_s[name]:g}", *cells)
    table.add_section()
    cells = [_cell(s.overall) for s in summaries.values()]
    table.add_row("all", str(len(comparison.runs[0].rows)), "", *cells)
    return table


def _cell(summary: TtftSummary) -> str:
    """Two lines, so that four systems side by side fit a terminal."""
    return f"{_seconds(summary.p50_s)} / {_seconds(summary.p99_s)}\n{summary.attained:.1%}"


def _seconds(value_s: float | None) -> str:
    return "failed" if value_s is None else f"{value_s:.3f}"


def _print_notes(
    system: str, summary: ReplaySummary, comparison: Comparison, console: Console
) -> None:
    worst = summary.classes[summary.worst_class]
    console.print(
        f"{system}: worst class {summary.worst_class} {worst.attained:.1%}; "
        f"attained from scheduled send {summary.attained_from_schedule:.1%}; client late p99 "
        f"{summary.lateness_p99_s * 1000:.1f} ms, max {summary.lateness_max_s * 1000:.1f} ms; "
        f"took {summary.duration_s:.1f} s"
    )
    if summary.lateness_p99_s > _NOTABLE_LATENESS_S:
        console.print(f"{system}: the client fell behind; read TTFTs with care", style="yellow")
    if summary.overall.num_errors:
        run = next(run for run in comparison.runs if run.system == system)
        first = next(row.error for row in run.rows if row.error is not None)
        console.print(
            f"{system}: {summary.overall.num_errors} requests failed, counted as misses; "
            f"first: {first}",
            style="yellow",
            markup=False,  # servers write brackets
        )


def result_head(title: str, config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the fields that every result file begins with."""
    return {
        "schema_version": SCHEMA_VERSION,
        "title": title,
        "provenance": asdict(provenance()),
        "config": config,
        "seed": seed,
    }


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Return the result as JSON-safe data; every field is documented on its dataclass."""
    summaries = comparison.summaries()
    return result_head(comparison.title, comparison.config, comparison.seed) | {
        "workload": {
            "origin": comparison.origin,
            "rate_per_s": comparison.rate_per_s,
            "length_scale": comparison.length_scale,
            "slo_scale": comparison.slo_scale,
        },
        "systems": {
            run.system: asdict(run.server)
            | {
                "summary": asdict(summaries[run.system]),
                "rows": [asdict(row) | {"ttft_s": row.ttft_s} for row in run.rows],
            }
            for run in comparison.runs
        },
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a result file, creating its folder.

    Raises:
        BenchError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error}") from error


def result_console() -> Console:
    """Return the console that results are printed to."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)


def new_folder(path: Path) -> Path:
    """Create the folder of a result; an older result is never overwritten.

    Raises:
        UsageError: It holds something already, or cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_empty = not any(path.iterdir())
    except OSError as error:
        raise UsageError(f"cannot use {path} for results: {error}") from error
    if not is_empty:
        raise UsageError(f"{path} holds a result already; give another --out")
    return path
