"""A section of the report for each result, and the page of all of them."""

from dataclasses import dataclass
from typing import Any

from bench.goodput.result import GoodputResult
from bench.goodput_report.options import ReportOptions
from bench.goodput_report.selection import reference_scale
from bench.goodput_report.targets import Verdict
from bench.results.page import Table, provenance_rows, render
from bench.results.picture import Picture


@dataclass(frozen=True, slots=True)
class Section:
    """One result file on the page.

    Attributes:
        anchor: Prefix of the anchors below it.
        file_name: Of the result.
        result: What it holds.
        verdicts: Its targets, judged.
        pictures: Of it.
        tables: Of it.
    """

    anchor: str
    file_name: str
    result: GoodputResult
    verdicts: list[Verdict]
    pictures: list[Picture]
    tables: list[Table]

    @property
    def title(self) -> str:
        """What was measured; with the scale of objectives where that is not the workload's."""
        scale = reference_scale(self.result)
        return self.result.title + ("" if scale == 1 else f", objectives x{scale:g}")

    @property
    def provenance(self) -> dict[str, str]:
        """What it was measured with, by name."""
        systems = self.result.systems.values()
        return provenance_rows(
            self.result.head.get("provenance", {}),
            self.result.origin,
            {probe.seed for system in systems for probe in system.probes},
            self.file_name,
        )

    @property
    def scaling(self) -> list[str]:
        """What differs from the workload as its authors run it, a sentence each."""
        return scaling_sentences(self.result)


def render_page(
    sections: list[Section], repeats: Table | None, burst: Picture | None, options: ReportOptions
) -> str:
    """Return the HTML of the page."""
    values = {"sections": sections, "repeats": repeats, "burst": burst, "options": options}
    return render("goodput.html.jinja", values)


def scaling_sentences(result: GoodputResult) -> list[str]:
    """Say what was scaled (lengths, objectives, rate, outputs) and how finely it was searched."""
    config: dict[str, Any] = result.head.get("config", {})
    sentences = []
    if result.length_scale != 1.0:
        sentences.append(
            f"Prompt lengths are those of the workload times {result.length_scale:g}, because "
            "this machine and model are slower than those the workload was recorded on."
        )
    slo_scale = config.get("slo_scale")
    if slo_scale not in {None, 1.0}:
        sentences.append(
            f"Objectives are those of the workload's authors times {slo_scale:g}, for the same "
            "reason; every system has the same ones."
        )
    scale = reference_scale(result)
    objectives = ", ".join(
        f"{name} {seconds * scale:g} s" for name, seconds in result.class_slos_s.items()
    )
    sentences.append(f"TTFT objectives here: {objectives}.")
    sentences.append(
        "Arrivals keep their pattern; all gaps are multiplied by one factor to reach a rate."
    )
    if not config.get("original_output_lengths"):
        sentences.append("Every request asks for one token, which isolates prefills.")
    sentences.append(
        f"A search ended when the rates that passed and failed were within {result.resolution:.1%} "
        "of one another."
    )
    return sentences
