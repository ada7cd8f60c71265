"""The page: one HTML file that holds everything, fetches nothing and needs no script."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from bench.goodput.result import GoodputResult
from bench.goodput_report.options import ReportOptions
from bench.goodput_report.selection import reference_scale
from bench.goodput_report.tables import Table
from bench.goodput_report.targets import Verdict
from bench.picture import Picture

_TEMPLATE = "page.html.jinja"


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
    def provenance(self) -> dict[str, str]:
        """What it was measured with, by name."""
        return provenance_rows(self.result)

    @property
    def scaling(self) -> list[str]:
        """What differs from the workload as its authors run it, a sentence each."""
        return scaling_sentences(self.result)


def render_page(sections: list[Section], burst: Picture | None, options: ReportOptions) -> str:
    """Return the HTML of the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(_TEMPLATE)
    return template.render(sections=sections, burst=burst, options=options)


def provenance_rows(result: GoodputResult) -> dict[str, str]:
    """Return what a result was measured with: name and text."""
    known: dict[str, Any] = result.head.get("provenance", {})
    hardware, versions = known.get("hardware", {}), known.get("versions", {})
    dirty = " with uncommitted changes" if known.get("is_dirty") else ""
    seeds = sorted({p.seed for system in result.systems.values() for p in system.probes})
    return {
        "measured": str(known.get("measured_at", "not known")),
        "commit": f"{known.get('commit') or 'not known'}{dirty}",
        "command": str(known.get("command", "not known")),
        "processor": f"{hardware.get('cpu_model', 'not known')}, "
        f"{hardware.get('num_cores', '?')} cores, {hardware.get('memory_gib', '?')} GiB",
        "versions": ", ".join(f"{name} {text}" for name, text in versions.items() if text),
        "workload": result.origin,
        "seeds": ", ".join(map(str, seeds)),
    }


def scaling_sentences(result: GoodputResult) -> list[str]:
    """Say what was scaled: lengths, objectives, rate, outputs."""
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
    return sentences
