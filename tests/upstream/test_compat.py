"""The installed SGLang is the one that the adapter was written for."""

import ast
from pathlib import Path

import pytest

from sglang_flowprefill import adapter
from sglang_flowprefill.adapter import compat
from sglang_flowprefill.errors import UnsupportedSGLangError

ADAPTER = Path(adapter.__file__).parent


def test_version_is_supported():
    """The installed version is on the list."""
    compat.verify_version()


@pytest.mark.parametrize("row", compat.EVERY_ROW, ids=lambda r: r.path)
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
    listed = {row.path for row in compat.EVERY_ROW}
    prefixes = {path.rsplit(".", n)[0] for path in listed for n in range(path.count(".") + 1)}
    missing = []
    for path in ADAPTER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang.srt"):
                base = node.module.removeprefix("sglang.srt").lstrip(".")
                names = [f"{base}.{a.name}".lstrip(".") for a in node.names]
                missing += [f"{path.name}: {n}" for n in names if n not in prefixes]
    assert missing == []
