"""Writes the reference pages that come from code: ``python docs/generate_reference.py``.

``tests/upstream/test_documentation.py`` fails if a page differs from what this writes.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from sglang_flowprefill.adapter import compat, releases
from sglang_flowprefill.adapter.attributes import ATTRIBUTES
from sglang_flowprefill.adapter.sglang_settings import (
    REFUSED_VARIABLES,
    RULES,
    UNTOUCHED,
    Proof,
    Rule,
    Treatment,
)
from sglang_flowprefill.api import request_features, state
from sglang_flowprefill.config import VARIABLE_PREFIX, FlowPrefillConfig, flag_of
from sglang_flowprefill.observe.metrics import METRICS, PREFIX, Metric

FOLDER = Path(__file__).parent / "reference"
_HEAD = "<!-- Written by docs/generate_reference.py; change the code, then run it again. -->\n"


def pages() -> Mapping[str, str]:
    """Return the text of every generated page by file name."""
    return {
        "settings.md": settings_page(),
        "compatibility.md": compatibility_page(),
        "sglang-settings.md": sglang_settings_page(),
        "metrics.md": metrics_page(),
        "state.md": state_page(),
        "request-features.md": request_features_page(),
    }


def _attribute_rows() -> list[str]:
    return [
        f"| `{owner}.{name}` | {why} |"
        for owner, rows in ATTRIBUTES.items()
        for name, why in rows.items()
    ]


def request_features_page() -> str:
    """List what a request may ask for."""
    return "\n".join(
        [
            _HEAD,
            "# Request features\n",
            "What becomes of each field of SGLang's `GenerateReqInput` and `EmbeddingReqInput`. A",
            "field that is in neither table, of a newer SGLang, is HTTP 400 on requests that use",
            "it. Routes of OpenAI's and others' shape are made into these.\n",
            "## Refused with HTTP 400\n",
            "| field | why |",
            "| --- | --- |",
            f"| `sampling_params.beam_width` above 1 | {request_features.BEAM_SEARCH} |",
            *(f"| `{name}` | {why} |" for name, why in request_features.REFUSED.items()),
            "",
            "## Served\n",
            "| field | about |",
            "| --- | --- |",
            *(f"| `{name}` | {what} |" for name, what in request_features.HONOURED.items()),
            "",
        ]
    )


def settings_page() -> str:
    """List every setting with its flag, variable, default and meaning."""
    rows = [
        f"| `{flag_of(s.name)}` | `{VARIABLE_PREFIX}{s.name.upper()}` | "
        f"{'' if s.default is None else s.default} | {s.metadata['help']} |"
        for s in fields(FlowPrefillConfig)
    ]
    return "\n".join(
        [
            _HEAD,
            "# Settings\n",
            "Flags of `python -m sglang_flowprefill.launch_server` (also in SGLang's `--config`",
            "file), and the variables that `sglang.Engine` reads, which has no command line.\n",
            "| flag | variable | default | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "`SGLANG_FLOWPREFILL=1` switches the installed plugin on for any SGLang entry point;",
            "the launcher sets it. `SGLANG_FLOWPREFILL=kernels` brings in our CPU kernels and",
            "nothing else: SGLang's own scheduler runs. `SGLANG_FLOWPREFILL_CACHE` is the folder",
            "of the embedded model, measured profiles and compiled kernels (default",
            "`~/.cache/sglang-flowprefill`).",
            "",
        ]
    )


def compatibility_page() -> str:
    """List the supported versions and touched upstream symbols."""
    symbols = [
        f"| `{row.path}` | `adapter/{row.used_in}` | {row.why} | {_releases_of(row)} |"
        for row in compat.EVERY_ROW
    ]
    supported = [
        f"| {release.version} | {'; '.join(release.lacks) or 'nothing'} |"
        for release in reversed(releases.RELEASES)
    ]
    return "\n".join(
        [
            _HEAD,
            "# Compatibility\n",
            "Any other release of SGLang is refused at start-up. 0.5.23 is what all tests run",
            "with, on a CPU with one and two ranks. The older ones are patched, served and",
            "restored by `make test-older`, on a CPU with one rank. None was run on a GPU.\n",
            "| SGLang | lacks |",
            "| --- | --- |",
            *supported,
            "\nPatch sets (`python -m sglang_flowprefill patch`) exist for all of them; with",
            "plugins allowed, 0.5.22 and 0.5.23 need none.\n",
            "## Symbols of SGLang that are touched\n",
            "Below `sglang.srt`. Verified at every start with FlowPrefill enabled.\n",
            "| symbol | used in | for | in |",
            "| --- | --- | --- | --- |",
            *symbols,
            "\n## Attributes of live objects that are touched\n",
            "Of SGLang 0.5.23; verified on the scheduler, its model runner and the first batch and",
            "request of the warm-up, at every start.\n",
            "| attribute | for |",
            "| --- | --- |",
            *_attribute_rows(),
            "",
        ]
    )


def sglang_settings_page() -> str:
    """List what becomes of SGLang's settings, worst first, and how that is shown."""
    sections: list[str] = []
    for treatment in (Treatment.TAKEN_OVER, Treatment.REFUSED, Treatment.HONOURED):
        rules = [rule for rule in RULES if rule.treatment is treatment]
        heads = {
            Treatment.TAKEN_OVER: ("Taken over", "how"),
            Treatment.REFUSED: ("Refused", "why; what to write instead"),
            Treatment.HONOURED: ("Honoured", "evidence"),
        }
        title, heading = heads[treatment]
        sections += [f"## {title}\n", f"| setting | proof | {heading} |", "| --- | --- | --- |"]
        grouped: dict[tuple[Proof, str], list[str]] = {}
        for rule in rules:
            flags = grouped.setdefault((rule.proof, _reason_of(rule)), [])
            flags += [f"`{rule.flag}`"] if f"`{rule.flag}`" not in flags else []
        sections += [
            f"| {', '.join(flags)} | {proof.value} | {reason} |"
            for (proof, reason), flags in grouped.items()
        ]
        sections.append("")
    return "\n".join(
        [
            _HEAD,
            "# Settings of SGLang\n",
            "What becomes of each setting of SGLang 0.5.23 when it is not at its default. For a",
            "setting with several rows it depends on the value.",
            "*Taken over*: what the setting is for is done in another way, and a line of the log",
            "says how. *Run here*: a test runs it on a CPU. *Only read*: SGLang's source was read,",
            "nothing was run; so on a GPU, not measured. `--flowprefill-strict` refuses what is",
            "taken over or only read.",
            "[`doctor --launch`](doctor.md#launch-lines) asks this table about a launch line.\n",
            *sections,
            "Variables that are refused:\n",
            *(f"* `{variable.name}`: {variable.why}" for variable in REFUSED_VARIABLES),
            f"\nThe other {len(UNTOUCHED)} settings (addresses, logs, tokenizing, parsers, loading",
            "of weights, details of what a row above refuses) have nothing to do with a suspended",
            "prefill.",
            "",
        ]
    )


def _reason_of(rule: Rule) -> str:
    return f"{rule.why}; {rule.instead}" if rule.instead else rule.why


def _releases_of(row: compat.UpstreamSymbol) -> str:
    return "all" if row.releases == compat.SUPPORTED_VERSIONS else ", ".join(row.releases)


def metrics_page() -> str:
    """List every metric with its labels and what it counts."""
    rows = [
        f"| `{PREFIX}{metric.name}{_labels(metric)}` | {metric.kind} | {metric.help} |"
        for metric in METRICS
    ]
    values = [
        f"* `{label}` of `{metric.name}`: {', '.join(f'`{value}`' for value in known)}"
        for metric in METRICS
        for label, known in metric.labels
        if known is not None
    ]
    return "\n".join(
        [
            _HEAD,
            "# Metrics\n",
            "With `--enable-metrics`, on SGLang's `/metrics`. A histogram has `_bucket`, `_sum`",
            "and `_count`. [Watch a server](../how-to/watch-a-server.md) has a dashboard.\n",
            "| name | type | meaning |",
            "| --- | --- | --- |",
            *rows,
            "\n## Values of labels\n",
            "`slo_class` is a class of the class file, or the default class. Further:\n",
            *values,
            "\n## Formulas\n",
            "Attainment of a class over five minutes:\n",
            "```",
            f'sum by (slo_class) (rate({PREFIX}first_tokens_total{{attained="true"}}[5m]))',
            f"  / sum by (slo_class) (rate({PREFIX}first_tokens_total[5m]))",
            "```\n",
            f"Rounds never outnumber events: `sum({PREFIX}rounds_total)` is at most",
            f"`sum({PREFIX}events_total)`.",
            "",
        ]
    )


def _labels(metric: Metric) -> str:
    names = ",".join(name for name, _ in metric.labels)
    return f"{{{names}}}" if names else ""


def state_page() -> str:
    """List every record of the state with its fields, the whole one first."""
    records = [
        record
        for record in vars(state).values()
        if isinstance(record, type) and issubclass(record, msgspec.Struct)
    ]
    records.insert(0, records.pop())
    return "\n".join(
        [
            _HEAD,
            "# State of a server\n",
            f"`GET {state.STATE_PATH}` answers with `ServerState` as JSON, schema version",
            f"{state.SCHEMA_VERSION}, for one scheduler (`?dp_rank=N` for another one of several).",
            "Fields may be added under the same version; a field that changes its meaning or goes",
            "takes a new one. Points in time are seconds of the scheduler's clock, which only",
            "compares with itself. Status 503 means that the scheduler does not answer; then the",
            'body is `{"error": "why"}`. The route is protected as the admin routes of SGLang are;',
            "[Watch a server](../how-to/watch-a-server.md) says how.",
            *(line for record in records for line in _record_section(record)),
            "",
        ]
    )


def _record_section(record: type[msgspec.Struct]) -> Iterator[str]:
    yield f"\n## {record.__name__}\n"
    yield inspect.getdoc(record).partition("\n")[0] + "\n"
    yield "| field | type | meaning |"
    yield "| --- | --- | --- |"
    meanings = attribute_texts(record)
    for name, kind in inspect.get_annotations(record).items():
        yield f"| `{name}` | {_json_type(kind)} | {meanings[name]} |"


def attribute_texts(record: type) -> Mapping[str, str]:
    """Return what a docstring's *Attributes* say, by name."""
    listed = inspect.getdoc(record).partition("Attributes:\n")[2]
    entries = re.split(r"^    (?=\w+: )", listed, flags=re.MULTILINE)[1:]
    pairs = (entry.split(": ", 1) for entry in entries)
    return {name: " ".join(text.split()) for name, text in pairs}


def _json_type(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return text.replace(f"{state.__name__}.", "").replace("None", "null").replace(" | ", " or ")


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)
