"""The documentation says what the code does."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from sglang_flowprefill.api import state
from sglang_flowprefill.observe.metrics import METRICS, PREFIX

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("patches/*.md")])


def reference_generator():
    """Load docs/generate_reference.py, which is no package."""
    path = ROOT / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date():
    """Every page of the reference that is generated is what docs/generate_reference.py writes."""
    generator = reference_generator()
    for name, text in generator.pages().items():
        assert (generator.FOLDER / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Every relative link of a page names an existing file or folder."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [t for t in local if not (page.parent / t).exists()] == []


UNUSUAL = re.compile(r"\b(?:bears?|bore|borne|anew)\b|objectives x ", re.IGNORECASE)
"""Words for which the field has others: sustained, again, SLO scale."""


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p.parent.name != "adr" and p.name != "CHANGELOG.md"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_pages_use_the_words_of_the_field(page):
    """No page says "bore 2 requests/s" for "sustained 2 requests/s"."""
    assert UNUSUAL.findall(page.read_text(encoding="utf-8")) == []


DASHBOARD = json.loads((ROOT / "docs/grafana/flowprefill.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def labels_by_series():
    """Return the labels of every time series that our metrics make, by its full name."""
    series = {}
    for metric in METRICS:
        labels = {name for name, _ in metric.labels}
        if metric.kind == "histogram":
            series |= {f"{PREFIX}{metric.name}_{end}": labels for end in ("sum", "count")}
            series[f"{PREFIX}{metric.name}_bucket"] = labels | {"le"}
        else:
            series[PREFIX + metric.name] = labels
    return series


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_dashboard_asks_for_what_exists(expression):
    """Each expression is balanced, of series that exist, and sorts by labels that they have."""
    assert expression.count("(") == expression.count(")")
    series = labels_by_series()
    asked = re.findall(rf"({PREFIX}\w+)\{{([^}}]*)\}}", expression)
    assert asked
    assert len(asked) == expression.count(PREFIX)
    for name, matchers in asked:
        assert name in series
        known = series[name] | {"instance"}  # which Prometheus adds
        assert set(re.findall(r"(\w+)=", matchers)) <= known
        for grouping in re.findall(r"by \(([^)]*)\)", expression):
            assert set(grouping.split(", ")) <= known


def test_the_dashboard_shows_every_metric():
    """No metric is left out of the dashboard, and every panel has a unit and its own place."""
    asked = {
        re.sub(r"_(?:bucket|sum|count)$", "", name)
        for expression in EXPRESSIONS
        for name in re.findall(rf"{PREFIX}\w+", expression)
    }
    assert asked == {PREFIX + metric.name for metric in METRICS}
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in DASHBOARD["panels"])


def test_the_legends_name_labels_of_their_expression():
    """What a legend says of a line is a label by which its expression is sorted."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            sorted_by = ", ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))
            assert named <= set(sorted_by.split(", ")), target


def test_every_field_of_the_state_is_documented():
    """Each field of each record of the state has its line in the record's docstring, and back."""
    generator = reference_generator()
    records = [r for r in vars(state).values() if getattr(r, "__struct_fields__", None)]
    assert len(records) > 5
    for record in records:
        assert set(generator.attribute_texts(record)) == set(record.__struct_fields__), record
