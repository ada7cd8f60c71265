"""``python -m bench report RESULT.json... --out FOLDER``."""

import argparse
from pathlib import Path

from bench.arguments import add_option_fields, options_of, positive_float
from bench.comparison.report import result_console
from bench.errors import BenchError
from bench.goodput.result import GoodputResult, read_result
from bench.goodput_report.burst import draw_burst
from bench.goodput_report.class_figures import draw_classes, draw_ttft
from bench.goodput_report.figures import draw_attainment, draw_goodput, draw_slo_scales
from bench.goodput_report.options import ReportOptions, Targets
from bench.goodput_report.page import Section, render_page
from bench.goodput_report.repeats import repeats_table
from bench.goodput_report.tables import class_table, goodput_table, scale_table, settings_table
from bench.goodput_report.targets import judge, overall
from bench.results.picture import Picture

PAGE = "report.html"
_DRAWINGS = (draw_goodput, draw_attainment, draw_slo_scales, draw_ttft, draw_classes)


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which results to show, and how."""
    defaults = ReportOptions()
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="RESULT.json", help="of bench goodput"
    )
    group = parser.add_argument_group("report")
    group.add_argument("--subject", default=defaults.subject, help="system that it is about")
    group.add_argument("--baseline", default=defaults.baseline, help="what people run today")
    group.add_argument(
        "--report-goal", type=positive_float, default=defaults.goal, help="share in time"
    )
    group.add_argument(
        "--cdf-rate",
        type=positive_float,
        help="requests/s of the distributions of TTFT; default: what most systems were offered",
    )
    group.add_argument(
        "--timeline", type=Path, help="a file of --flowprefill-trace, to show a burst"
    )
    add_option_fields(parser, "targets", defaults.targets)


async def run_report(args: argparse.Namespace) -> None:
    """Write the page and its pictures; an older report in the folder is replaced.

    Raises:
        BenchError: A file is no result, or the folder cannot be written.
    """
    options = report_options(args)
    results = {path: read_result(path) for path in args.results}
    page = write_report(results, options, args.out)
    console = result_console()
    for result in results.values():
        console.print(result.title, style="bold", markup=False)
        verdicts = judge(result, options)
        for verdict in verdicts:
            console.print(f"  {verdict.outcome}: {verdict.claim} ({verdict.detail})", markup=False)
        if verdicts:
            console.print(f"  {overall(verdicts)}")
    console.print(f"written: {page}")


def report_options(args: argparse.Namespace) -> ReportOptions:
    """Collect the options of a report."""
    return ReportOptions(
        subject=args.subject,
        baseline=args.baseline,
        goal=args.report_goal,
        cdf_rate_per_s=args.cdf_rate,
        timeline=args.timeline,
        targets=options_of(args, Targets),
    )


def write_report(results: dict[Path, GoodputResult], options: ReportOptions, folder: Path) -> Path:
    """Write the page and the PNGs of its pictures, a folder for each result; return the page.

    Raises:
        BenchError: A result holds nothing to show, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sections = [
            _section(i, path, result, options, folder)
            for i, (path, result) in enumerate(results.items(), start=1)
        ]
        repeats = repeats_table(list(results.values()), options)
        burst = draw_burst(options.timeline, folder) if options.timeline else None
        page = folder / PAGE
        page.write_text(render_page(sections, repeats, burst, options), encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot write the report to {folder}: {error}") from error
    return page


def _section(
    number: int, path: Path, result: GoodputResult, options: ReportOptions, folder: Path
) -> Section:
    anchor = f"result-{number}"
    pictures_folder = folder / anchor
    pictures_folder.mkdir(exist_ok=True)
    drawn = [draw(result, options, pictures_folder) for draw in _DRAWINGS]
    tables = [
        goodput_table(result, options),
        class_table(result, options),
        scale_table(result, options),
        settings_table(result, options),
    ]
    return Section(
        anchor=anchor,
        file_name=path.name,
        result=result,
        verdicts=judge(result, options),
        pictures=[picture for picture in drawn if isinstance(picture, Picture)],
        tables=[table for table in tables if table is not None],
    )
