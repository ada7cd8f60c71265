"""The page of a demo: what became of each request, class by class, and how servers were started."""

from dataclasses import asdict
from pathlib import Path

from bench.comparison.report import Comparison, comparison_document
from bench.demo.burst import LENGTH_SCALE, SLO_SCALE
from bench.demo.figures import draw_requests
from bench.errors import UsageError
from bench.goodput.numbers import share_text
from bench.goodput_report.burst import draw_burst
from bench.replaying.metrics import TtftSummary
from bench.results.page import Table, command_text, provenance_rows, render
from bench.results.picture import Picture

PAGE = "demo.html"


def write_page(comparison: Comparison, result_file: str, timeline_file: str, folder: Path) -> Path:
    """Write the page of a demo and its pictures; return the page.

    Args:
        comparison: What was measured.
        result_file: Name of the file with its raw rows.
        timeline_file: Name of FlowPrefill's timeline, which need not exist.
        folder: That of both, and of the page.
    """
    document = comparison_document(comparison)
    pictures = [draw_requests(comparison.title, comparison.runs, folder)]
    timeline = _timeline(folder / timeline_file, folder)
    values = {
        "title": comparison.title,
        "table": _class_table(comparison),
        "settings": _settings_table(comparison),
        "pictures": pictures + ([] if timeline is None else [timeline]),
        "provenance": provenance_rows(
            document["provenance"], comparison.origin, [comparison.seed], result_file
        ),
        "length_scale": LENGTH_SCALE,
        "slo_scale": SLO_SCALE,
    }
    page = folder / PAGE
    page.write_text(render("demo.html.jinja", values), encoding="utf-8")
    return page


def _timeline(path: Path, folder: Path) -> Picture | None:
    """Draw what FlowPrefill did, if it ran and had to suspend anything."""
    try:
        return draw_burst(path, folder)
    except UsageError:
        return None


def _class_table(comparison: Comparison) -> Table:
    summaries = comparison.summaries()
    slos_s = {row.slo_class: row.slo_ttft_s for row in comparison.runs[0].rows}
    first = next(iter(summaries.values()))
    rows = []
    for name, of_class in first.classes.items():
        cells = [_cells(summary.classes[name]) for summary in summaries.values()]
        within = f"{name}: {of_class.num_requests} within {slos_s[name]:g} s"
        rows.append((within, *(cell for pair in cells for cell in pair)))
    cells = [_cells(summary.overall) for summary in summaries.values()]
    rows.append(("all", *(cell for pair in cells for cell in pair)))
    headings = [(f"{name}: in time", "TTFT p50 / p99 s") for name in summaries]
    return Table(
        "classes",
        "In time by class, one run of each system",
        ("class", *(heading for pair in headings for heading in pair)),
        rows,
    )


def _cells(summary: TtftSummary) -> tuple[str, str]:
    times = ["failed" if t is None else f"{t:.2f}" for t in (summary.p50_s, summary.p99_s)]
    return share_text([summary.attained], summary.num_requests), " / ".join(times)


def _settings_table(comparison: Comparison) -> Table:
    rows = [
        (
            run.system,
            str(run.server.server_info.get("version", "-")),
            command_text(asdict(run.server)),
        )
        for run in comparison.runs
    ]
    headings = ("system", "version", "environment and command")
    return Table("settings", "How they were started", headings, rows, is_text=True)
