"""The documentation says what the code does."""

import importlib.util
import re
from pathlib import Path

import pytest

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
    """Settings and compatibility pages are what docs/generate_reference.py writes."""
    generator = reference_generator()
    for name, text in generator.pages().items():
        assert (generator.FOLDER / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Every relative link of a page names an existing file or folder."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [t for t in local if not (page.parent / t).exists()] == []


def test_every_metric_is_documented():
    """docs/reference/metrics.md names exactly the metrics that adapter/metrics.py makes."""
    source = (ROOT / "sglang_flowprefill/adapter/metrics.py").read_text(encoding="utf-8")
    made = set(re.findall(r'f"\{prefix\}(\w+)"', source))
    page = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `sglang_flowprefill_(\w+)", page, re.MULTILINE)) == made
