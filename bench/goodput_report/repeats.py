"""Whether runs of the same searches agree: a table, where a report holds several."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bench.goodput.analysis import Answer, answers, paired_ratios, spread_of
from bench.goodput.numbers import NOTHING, goodput_text, ratio_text
from bench.goodput.result import GoodputResult, Search
from bench.goodput_report.options import ReportOptions
from bench.goodput_report.selection import ranked, reference_scale
from bench.results.page import Table

# What may differ between runs that ask for the same: which systems, and how a search gets there.
_NOT_ASKED = {"equal_load", "lowest_rate", "out", "probe_rates", "resume", "start_rate", "systems"}


class _Finding(NamedTuple):
    """One number of one run.

    Attributes:
        found: Of each seed; empty where the run does not have it.
        text: The same, written.
    """

    found: list[Answer]
    text: str


def _runs_of_one_question(results: Sequence[GoodputResult]) -> list[GoodputResult]:
    """Return the first result and those that asked for the same; empty if there are none."""
    first, *others = results
    same = [result for result in others if _question(result) == _question(first)]
    return [first, *same] if same else []


def repeats_table(results: Sequence[GoodputResult], options: ReportOptions) -> Table | None:
    """Each run's max goodputs and ratios, and whether the others lie in the first's spread.

    None where no two results asked for the same.
    """
    runs = _runs_of_one_question(results)
    if not runs:
        return None
    rows = []
    for label, findings in _findings(runs, options):
        first, *others = findings
        within = [_is_within(first.found, other.found) for other in others if other.found]
        outcome = f"{sum(within)} of {len(within)}" if within else NOTHING
        rows.append((label, *(finding.text for finding in findings), outcome))
    return Table(
        "agreement",
        f"The same searches again: {options.goal:.0%} in time, and whether the medians of the "
        "other runs lie between the ends of the first",
        (
            "requests/s, and ratios seed by seed",
            *(f"run {number}, {run.measured_at}" for number, run in enumerate(runs, start=1)),
            "within the first",
        ),
        rows,
    )


def _question(result: GoodputResult) -> tuple[Any, ...]:
    config: dict[str, Any] = result.head.get("config", {})
    asked = {name: value for name, value in config.items() if name not in _NOT_ASKED}
    return result.origin, result.length_scale, result.class_slos_s, asked


def _findings(
    runs: Sequence[GoodputResult], options: ReportOptions
) -> Iterator[tuple[str, list[_Finding]]]:
    """Yield each system's max goodput, then the subject's over each other's, in every run."""
    scale = reference_scale(runs[0])
    names = [system.name for system in ranked(runs[0], options, scale)]

    def searches_of(run: GoodputResult, name: str) -> list[Search]:
        system = run.systems.get(name)
        return system.searches_for(scale, options.goal) if system else []

    for name in names:
        found = [searches_of(run, name) for run in runs]
        yield name, [_Finding(answers(some), goodput_text(some)) for some in found]
    for name in names:
        if name == options.subject:
            continue
        ratios = [
            paired_ratios(searches_of(run, options.subject), searches_of(run, name)) for run in runs
        ]
        if any(ratios):
            yield (
                f"{options.subject} over {name}",
                [_Finding(some, ratio_text(some)) for some in ratios],
            )


def _is_within(first: Sequence[Answer], later: Sequence[Answer]) -> bool:
    if not first:
        return False
    ends = spread_of(first)
    return ends.least <= spread_of(later).median <= ends.most
