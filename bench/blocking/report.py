"""Tables, result file and picture of ``blocking``."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.blocking.analysis import GranularityResult, LengthResult
from bench.blocking.figure import draw_blocking
from bench.blocking.options import TAX_REFERENCE, BlockingOptions
from bench.blocking.tax import Block
from bench.blocking.waits import WaitSummary
from bench.comparison.report import measured_on, result_head, write_json
from bench.results.paired import PairedSample, PairedSummary, Spread, summarise_pairs
from bench.systems.servers import ServerDescription


class Report:
    """Collects results, and writes and prints what is known.

    Attributes:
        folder: Of the result.
        results: By granularity.
        tax_samples: Of the throughput tax.
    """

    def __init__(self, config: dict[str, Any], options: BlockingOptions, folder: Path) -> None:
        self._config = config
        self._options = options
        self.folder = folder
        self._servers: dict[str, ServerDescription] = {}
        self.results: dict[str, GranularityResult] = {}
        self.tax_samples: list[PairedSample[Block]] = []

    def add_server(self, name: str, server: ServerDescription) -> None:
        """Remember how a server was started."""
        self._servers[name] = server

    @property
    def title(self) -> str:
        """Say what was sent and on what it was measured."""
        return (
            f"Blocking of {self._options.urgent_tokens}-token prompts by a running prefill, "
            f"{measured_on(self._servers.values())}"
        )

    def write(self) -> None:
        """Write result and picture."""
        document = result_head(self.title, self._config, self._options.seed) | {
            "servers": {name: asdict(server) for name, server in self._servers.items()},
            "blocking": {name: asdict(result) for name, result in self.results.items()},
            "tax": {
                "reference": TAX_REFERENCE,
                "summary": [asdict(summary) for summary in self._tax()],
                "samples": [asdict(sample) for sample in self.tax_samples],
            },
        }
        write_json(self.folder / "result.json", document)
        if self.results:
            draw_blocking(
                self.title,
                _by_length(self.results, lambda length: length.observed),
                _by_length(self.results, lambda length: length.uniform),
                self.folder / "blocking.png",
            )

    def print(self, console: Console) -> None:
        """Print all tables."""
        if self.results:
            console.print(blocking_table(self.title, self.results))
            console.print(switch_table(self._options, self.results))
        if self.tax_samples:
            console.print(tax_table(self._tax()))

    def _tax(self) -> list[PairedSummary[Block]]:
        return summarise_pairs(self.tax_samples, TAX_REFERENCE)


def _by_length(
    results: Mapping[str, GranularityResult],
    summary_of: Callable[[LengthResult], WaitSummary | None],
) -> dict[str, dict[int, WaitSummary | None]]:
    return {
        name: {length.num_tokens: summary_of(length) for length in result.lengths}
        for name, result in results.items()
    }


def blocking_table(title: str, results: Mapping[str, GranularityResult]) -> Table:
    """Set the granularities of each length below one another; all times in ms."""
    table = Table(title=f"{title} (ms)")
    table.add_column("running\nprompt", justify="right")
    table.add_column("granularity")
    table.add_column("arrivals", justify="right")
    table.add_column("observed, upper bound\np50 / p99 / max", justify="right")
    table.add_column("uniformly random arrival\np50 / p99 / max", justify="right")
    table.add_column("from HTTP send\np50 / p99 / max", justify="right")
    num_lengths = min(len(result.lengths) for result in results.values())
    for index in range(num_lengths):
        for name, result in results.items():
            length = result.lengths[index]
            waits = (length.observed, length.uniform, length.from_send)
            count = 0 if length.observed is None else length.observed.num_samples
            cells = [_waits_cell(summary) for summary in waits]
            table.add_row(str(length.num_tokens), name, str(count), *cells)
        table.add_section()
    return table


def _waits_cell(summary: WaitSummary | None) -> str:
    if summary is None:
        return "-"
    return " / ".join(_ms(seconds) for seconds in (summary.p50_s, summary.p99_s, summary.max_s))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


def switch_table(options: BlockingOptions, results: Mapping[str, GranularityResult]) -> Table:
    """Show what a suspension costs, in ms."""
    table = Table(title=f"Cost of a suspension of a {options.switch_tokens}-token prompt (ms)")
    table.add_column("granularity")
    table.add_column("suspensions", justify="right")
    table.add_column("away\np50", justify="right")
    table.add_column("urgent prompt\non idle server p50", justify="right")
    table.add_column("long prompt's\nown time longer by", justify="right")
    table.add_column("switch cost: its end\nlater than all work by", justify="right")
    for name, result in results.items():
        cost = result.switch
        if cost is None:
            table.add_row(name, "0", "-", "-", "-", "-")
            continue
        times_s = (cost.away_p50_s, cost.handled_p50_s, cost.slower_s, cost.extra_s)
        table.add_row(name, str(cost.num_suspensions), *(_ms(seconds) for seconds in times_s))
    return table


def tax_table(summaries: list[PairedSummary[Block]]) -> Table:
    """Show prefill throughput with an idle queue."""
    table = Table(title="Prefill with an idle queue: preemption armed and never used")
    table.add_column("prompt", justify="right")
    table.add_column("system")
    table.add_column("tokens/s\nmedian (min to max)", justify="right")
    table.add_column(f"time / {TAX_REFERENCE}'s of the round\nmedian (min to max)", justify="right")
    for summary in sorted(summaries, key=lambda s: (-s.case.num_tokens, s.system)):
        assert summary.ratio is not None, "every round asks the reference"
        speed = _tokens_per_s(summary.case, summary.seconds)
        table.add_row(
            str(summary.case.num_tokens), summary.system, speed.text(0), summary.ratio.text(3)
        )
    return table


def _tokens_per_s(block: Block, seconds: Spread) -> Spread:
    num_tokens = block.total_tokens
    return Spread(
        num_tokens / seconds.median, num_tokens / seconds.most, num_tokens / seconds.least
    )
