"""What ``python -m sglang_flowprefill doctor`` prints and returns."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from sglang_flowprefill import __version__
from sglang_flowprefill.__main__ import main
from sglang_flowprefill.checks import fail, ok, warn
from sglang_flowprefill.commands import doctor

PAGE = Path(__file__).parents[3] / "docs/reference/doctor.md"


@pytest.mark.parametrize(
    ("findings", "status"),
    [
        ([ok("a", "fine")], 0),
        ([ok("a", "fine"), warn("b", "odd", "look")], 0),
        ([fail("a", "bad", "mend")], 1),
    ],
)
def test_only_failures_make_the_exit_status_1(monkeypatch, capsys, findings, status):
    """Warnings do not; JSON is all that stands on stdout, and says the same."""

    def checks(_flags):
        print("an import that talks")
        yield from findings

    monkeypatch.setattr(doctor, "_findings", checks)
    assert main(["doctor", "--json"]) == status
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] == (status == 0)
    assert (record["schema"], record["version"]) == (1, __version__)
    assert [c["check"] for c in record["checks"]] == [f.check for f in findings]
    assert record["checks"][0].keys() == {"check", "status", "found", "advice"}


def test_the_table_holds_everything_that_the_record_holds():
    """Texts of SGLang with brackets in them are no markup."""
    console = Console(width=120, record=True)
    console.print(doctor.table_of([warn("flags", "--x [y]: no", "drop [it]")]))
    text = console.export_text()
    assert all(part in text for part in ("flags", "warn", "--x [y]: no", "drop [it]"))


def test_the_server_is_asked_only_if_an_address_is_given(monkeypatch, capsys):
    """The key goes to it, and to the flags as SGLang's own."""
    seen = []

    def ask(*arguments):
        seen.append(arguments)
        return ok("server", "fine")

    monkeypatch.setattr(doctor, "_findings", lambda flags: [ok("flags", " ".join(flags))])
    monkeypatch.setattr(doctor, "check_server", ask)
    main(["doctor", "--json"])
    assert seen == []
    capsys.readouterr()
    main(["doctor", "--json", "--url", "http://h:1", "--api-key", "k", "--tp", "2"])
    assert seen == [("http://h:1", "k")]
    record = json.loads(capsys.readouterr().out)
    assert record["checks"][0]["found"] == "--tp 2 --api-key k"


def test_without_the_right_sglang_nothing_of_it_is_imported(monkeypatch):
    """The check that fails is the last one: what needs SGLang would fail with a traceback."""
    bad = fail("sglang", "0.4.0", "install")
    monkeypatch.setattr(doctor, "check_sglang_version", lambda _: bad)
    monkeypatch.setattr(doctor, "_findings_of_the_server", lambda *_: pytest.fail("imported"))
    names = [finding.check for finding in doctor._findings([])]
    assert names == ["sglang", "packages", "plugin", "device", "kernels"]


def test_the_reference_page_lists_the_checks_in_their_order():
    """Names are part of the JSON's promise."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    documented = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert documented == [
        *("sglang", "packages", "plugin", "device", "kernels"),
        *("symbols", "scheduler", "flags", "model", "predictor", "server"),
    ]
