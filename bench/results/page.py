"""Pages: one HTML file each, which holds everything, fetches nothing and needs no script."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

_TEMPLATES = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a page; the first cell of a row is its heading.

    Attributes:
        name: Its anchor in the page.
        caption: What it holds.
        headings: Of the columns.
        rows: As many cells each.
        is_text: Whether cells are words, to be set on the left.
    """

    name: str
    caption: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    is_text: bool = False


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the HTML of a template of ``bench/templates``; text in values is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def provenance_rows(
    known: Mapping[str, Any], origin: str, seeds: Iterable[int], file_name: str
) -> dict[str, str]:
    """Return what a result was measured with: name and text.

    Args:
        known: ``Provenance`` as JSON.
        origin: Of the workload.
        seeds: Of workloads and prompts.
        file_name: Of the result with its raw rows.
    """
    hardware, versions = known.get("hardware", {}), known.get("versions", {})
    dirty = " with uncommitted changes" if known.get("is_dirty") else ""
    return {
        "measured": str(known.get("measured_at", "not known")),
        "commit": f"{known.get('commit') or 'not known'}{dirty}",
        "command": str(known.get("command", "not known")),
        "processor": f"{hardware.get('cpu_model', 'not known')}, "
        f"{hardware.get('num_cores', '?')} cores, {hardware.get('memory_gib', '?')} GiB",
        "versions": ", ".join(f"{name} {text}" for name, text in versions.items() if text),
        "workload": origin,
        "seeds": ", ".join(str(seed) for seed in sorted(set(seeds))),
        "raw rows": f"every request of every replay is in {file_name}",
    }


def command_text(server: Mapping[str, Any]) -> str:
    """Write environment and command of a server as a shell would take them."""
    variables = [f"{name}={value}" for name, value in server.get("environment", {}).items()]
    return " ".join([*variables, *server.get("command", ())]) or "started by somebody else"
