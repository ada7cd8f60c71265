"""Writes the reference pages that come from code: ``python docs/generate_reference.py``.

``tests/upstream/test_documentation.py`` fails if a page differs from what this writes.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from sglang_flowprefill.adapter import compat
from sglang_flowprefill.adapter.unsupported import UNSUPPORTED_FEATURES
from sglang_flowprefill.config import VARIABLE_PREFIX, FlowPrefillConfig, flag_of

FOLDER = Path(__file__).parent / "reference"
_HEAD = "<!-- Written by docs/generate_reference.py; change the code, then run it again. -->\n"


def pages() -> Mapping[str, str]:
    """Return the text of every generated page by file name."""
    return {"settings.md": settings_page(), "compatibility.md": compatibility_page()}


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
    """List the supported versions, refused settings and touched upstream symbols."""
    refused = [f"| `{f.flag}` | {f.why} |" for f in UNSUPPORTED_FEATURES]
    symbols = [
        f"| `{row.path}` | `adapter/{row.used_in}` | {row.why} |" for row in compat.EVERY_ROW
    ]
    versions = ", ".join(compat.SUPPORTED_VERSIONS)
    return "\n".join(
        [
            _HEAD,
            "# Compatibility\n",
            f"SGLang: {versions}. Tested on a CPU with one and two ranks; not run on a GPU.\n",
            "## Settings of SGLang that are refused\n",
            "| setting | why |",
            "| --- | --- |",
            *refused,
            "\n## Symbols of SGLang that are touched\n",
            "Below `sglang.srt`. Verified at every start with FlowPrefill enabled.\n",
            "| symbol | used in | for |",
            "| --- | --- | --- |",
            *symbols,
            "",
        ]
    )


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)
