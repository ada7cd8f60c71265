"""The installed SGLang is the one that the adapter was written for."""

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest

from sglang_flowprefill import adapter
from sglang_flowprefill.adapter import compat, flags, releases
from sglang_flowprefill.errors import UnsupportedSGLangError

ADAPTER = Path(adapter.__file__).parent
ROWS = compat.EVERY_ROW
DUE = compat.rows_of(ROWS, releases.installed_version())


def test_version_is_supported():
    """The installed version is on the list."""
    compat.verify_version()


def test_other_version_is_refused(monkeypatch):
    """The error names what is installed, what would do, and the command that gets it."""
    monkeypatch.setattr(releases, "installed_version", lambda: "0.5.14")
    with pytest.raises(UnsupportedSGLangError, match=r"0\.5\.14 .* pip install sglang==0\.5\.23"):
        compat.verify_version()


def test_requirement_spans_the_supported_releases():
    """Pip may install no release older or newer than those that run."""
    requirements = importlib.metadata.requires("sglang-flowprefill")
    (sglang,) = [text for text in requirements if re.match(r"sglang\b", text)]
    oldest, newest = compat.SUPPORTED_VERSIONS[0], compat.SUPPORTED_VERSIONS[-1]
    assert {f">={oldest}", f"<={newest}"} == set(sglang.removeprefix("sglang").split(","))


def test_rules_that_a_release_cannot_answer_are_refused(monkeypatch):
    """Without a way to answer refused requests, a rule that may refuse stops the start."""
    monkeypatch.setattr(releases.startup(), "HAS_ABORT_HOOK", False)
    flags.require_answers(can_reject_requests=False)
    with pytest.raises(UnsupportedSGLangError, match="--flowprefill-max-waiting"):
        flags.require_answers(can_reject_requests=True)


def test_rows_name_supported_releases():
    """No row is kept for a release that is not supported, and none holds for no release."""
    supported = set(compat.SUPPORTED_VERSIONS)
    assert all(row.releases and set(row.releases) <= supported for row in ROWS)


@pytest.mark.parametrize("row", DUE, ids=lambda r: r.path)
def test_upstream_symbol_is_as_expected(row):
    """Each symbol of the table exists and takes the parameters that we rely on."""
    assert compat.mismatch(row) is None


def test_mismatches_are_reported_with_path_and_file():
    """A vanished symbol and a changed signature each give a message that names them."""
    rows = (
        compat.UpstreamSymbol("managers.scheduler.Scheduler.no_such_method", "scheduler.py", ""),
        compat.UpstreamSymbol("managers.utils.is_health_check_generate_req", "x.py", "", ("no",)),
    )
    with pytest.raises(UnsupportedSGLangError, match=r"no_such_method(.|\n)*is_health_check"):
        compat.verify_symbols(rows)


def test_every_import_of_sglang_is_a_row():
    """The table lists every name that the adapter imports from sglang."""
    listed = {row.path for row in ROWS}
    prefixes = {path.rsplit(".", n)[0] for path in listed for n in range(path.count(".") + 1)}
    missing = []
    for path in ADAPTER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang.srt"):
                base = node.module.removeprefix("sglang.srt").lstrip(".")
                names = [f"{base}.{a.name}".lstrip(".") for a in node.names]
                missing += [f"{path.name}: {n}" for n in names if n not in prefixes]
    assert missing == []
