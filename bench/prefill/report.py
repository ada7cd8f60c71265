"""Table and result file of ``prefill``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.comparison.report import measured_on, result_head, write_json
from bench.prefill.figure import draw_prefill
from bench.prefill.measuring import PrefillSample
from bench.prefill.options import PrefillCase, PrefillOptions
from bench.results.paired import PairedSummary, summarise_pairs
from bench.systems.servers import ServerDescription


class Report:
    """Collects samples, and writes and prints what is known.

    Attributes:
        options: What is sent.
        folder: Of the result.
    """

    def __init__(
        self,
        config: dict[str, Any],
        options: PrefillOptions,
        systems: Sequence[str],
        folder: Path,
    ) -> None:
        self._config = config
        self._systems = systems
        self.options = options
        self.folder = folder
        self._servers: dict[str, ServerDescription] = {}
        self._samples: list[PrefillSample] = []

    def add(
        self, started_as: str, server: ServerDescription, samples: Sequence[PrefillSample]
    ) -> None:
        """Add what one server answered, and write what is known."""
        self._servers[started_as] = server
        self._samples += samples
        self._write()

    @property
    def title(self) -> str:
        """Say what was sent and on what it was measured."""
        num_rounds = 1 + max(sample.round_index for sample in self._samples)
        return (
            "Time to first token of one prompt on an idle server, "
            f"{measured_on(self._servers.values())}, {num_rounds} round"
            f"{'' if num_rounds == 1 else 's'}"
        )

    def summaries(self) -> list[PairedSummary[PrefillCase]]:
        """Compare every system with the first."""
        return summarise_pairs([sample.paired for sample in self._samples], self._systems[0])

    def _write(self) -> None:
        """Write result and picture."""
        document = result_head(self.title, self._config, self.options.seed) | {
            "reference": self._systems[0],
            "servers": {name: asdict(server) for name, server in self._servers.items()},
            "summary": [asdict(summary) for summary in self.summaries()],
            "samples": [asdict(sample) for sample in self._samples],
        }
        write_json(self.folder / "result.json", document)
        draw_prefill(self.title, self._systems, self.summaries(), self.folder / "prefill.png")

    def print(self, console: Console) -> None:
        """Print the table."""
        console.print(prefill_table(self.title, self._systems, self.summaries()))


def prefill_table(
    title: str, systems: Sequence[str], summaries: Sequence[PairedSummary[PrefillCase]]
) -> Table:
    """Set the systems side by side, cases as rows."""
    table = Table(title=f"{title}; below it the time over {systems[0]}'s")
    table.add_column("prompt tokens", justify="right")
    for system in systems:
        table.add_column(f"{system}\nTTFT s", justify="right")
    by_case: dict[PrefillCase, dict[str, PairedSummary[PrefillCase]]] = {}
    for summary in summaries:
        by_case.setdefault(summary.case, {})[summary.system] = summary
    for case, of_system in by_case.items():
        cells = [_cell(of_system.get(system), systems[0]) for system in systems]
        table.add_row(case.label, *cells)
    return table


def _cell(summary: PairedSummary[PrefillCase] | None, reference: str) -> str:
    if summary is None:
        return "-"
    if summary.ratio is None or summary.system == reference:
        return summary.seconds.text(3)
    return f"{summary.seconds.text(3)}\nx {summary.ratio.text(2)}"
