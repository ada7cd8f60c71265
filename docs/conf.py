"""The documentation as a site: ``make docs``. Pages are Markdown that reads as well without it.

The navigation is made here and not in ``index.md``, which would show it as code on GitHub.
"""

from typing import Any

from sglang_flowprefill import __version__

project = "sglang-flowprefill"
author = "the sglang-flowprefill authors"
release = __version__

extensions = ["myst_parser"]
myst_heading_anchors = 3  # [text](page.md#a-heading), as on GitHub
nitpicky = True

html_theme = "furo"  # its fonts are the reader's own: no page loads anything from elsewhere
html_title = f"sglang-flowprefill {release}"
html_show_sourcelink = False
html_copy_source = False

NAVIGATION = {
    "Tutorial": ["tutorial/*"],
    "How to": [
        "how-to/from-stock-to-flowprefill",
        "how-to/troubleshoot",
        "how-to/tune-slo-classes",
        "how-to/deploy-on-a-gpu",
        "how-to/pd",
        "how-to/upgrade-and-roll-back",
        "how-to/read-the-timeline",
        "how-to/benchmark",
        "how-to/*",
    ],
    "Reference": [
        "reference/settings",
        "reference/slo",
        "reference/metrics",
        "reference/statistics",
        "reference/doctor",
        "reference/sglang-settings",
        "reference/compatibility",
        "reference/compatibility-policy",
        "reference/*",
    ],
    "Explanation": [
        "explanation/architecture",
        "explanation/preemption",
        "explanation/policy",
        "explanation/paper-map",
        "explanation/limits",
        "explanation/*",
    ],
    "Results": ["results"],
    "Decisions": ["adr/README", "adr/*"],
}
"""Pages by caption. What only a pattern names comes after the others, by file name."""


def add_navigation(_app: Any, page: str, source: list[str]) -> None:
    """Append the navigation to the start page, in place (event ``source-read``)."""
    if page != "index":
        return
    for caption, pages in NAVIGATION.items():
        lines = ["```{toctree}", f":caption: {caption}", ":hidden:", ":glob:", "", *pages, "```"]
        source[0] += "\n" + "\n".join(lines) + "\n"


def setup(app: Any) -> None:
    """Register with Sphinx."""
    app.connect("source-read", add_navigation)
