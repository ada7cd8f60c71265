"""Reads the documentation for its tests: pages, code blocks, and which of them are to be run.

A block is run by a test if an HTML comment stands right before it:

* ``<!-- test: server -->``: a shell script against the server of the integration tests, which
  takes the place of ``http://127.0.0.1:30000``;
* ``<!-- test: class file -->``: a valid file for ``--flowprefill-slo-config``.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("patches/*.md")])
USER_PAGES = [page for page in PAGES if "adr" not in page.parts]
"""Pages that say how it is now; decisions and their time are left alone."""

DOCUMENTED_SERVER = "http://127.0.0.1:30000"
_LIMIT_S = 240.0
_KINDS = frozenset({"server", "class file"})
_BLOCK = re.compile(
    r"^(?:<!-- test: (?P<kind>[\w ]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    kind: str | None
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def run(self, server_url: str) -> str:
        """Run it in the repository's root, as a reader would, and return what it printed."""
        script = self.text.replace(".venv/bin/python", sys.executable)
        script = script.replace(DOCUMENTED_SERVER, server_url)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env=os.environ | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as shell:
            try:
                printed, complaints = shell.communicate(timeout=_LIMIT_S)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)  # a client left behind keeps asking
        assert shell.returncode == 0, f"{self}\n{printed}\n{complaints}"
        return printed


def blocks(kind: str | None = None) -> list[Block]:
    """List the blocks of all pages, or those of one kind of test."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            assert match["kind"] in {None, *_KINDS}, f"{page}:{line}: no such kind of test"
            found.append(Block(page, line, match["kind"], match["language"], match["text"]))
    return [block for block in found if kind in {None, block.kind}]


def words(pattern: str, pages: list[Path] = USER_PAGES) -> dict[str, set[str]]:
    """Return every word of the pages that matches, with the pages that use it."""
    found: dict[str, set[str]] = {}
    for page in pages:
        for word in re.findall(pattern, page.read_text(encoding="utf-8")):
            found.setdefault(word, set()).add(str(page.relative_to(ROOT)))
    return found
