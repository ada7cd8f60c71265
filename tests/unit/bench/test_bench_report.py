"""A result can be judged from what it leaves behind, and can be published as it is."""

import io
import json

import pytest
from rich.console import Console
from rows import row

from bench.comparison.figure import draw_comparison
from bench.comparison.report import (
    Comparison,
    SystemRun,
    comparison_document,
    new_folder,
    print_comparison,
    write_json,
)
from bench.errors import UsageError
from bench.results.provenance import without_folders
from bench.systems.servers import ServerDescription

ON_CPU = ServerDescription(server_info={"device": "cpu", "version": "0.5.23"})


def comparison(**changes):
    """Build a comparison of a fast and a slow system."""
    fast = [row(i, ttft_s=0.1) for i in range(4)] + [row(4, "file", 5.0, 6.0)]
    slow = [row(i, ttft_s=2.0) for i in range(3)] + [row(3, ttft_s=None), row(4, "file", 4.0, 6.0)]
    fields = {
        "origin": "window (reconstructed)",
        "rate_per_s": 1.5,
        "length_scale": 0.25,
        "slo_scale": 4.0,
        "config": {"rate": 1.5},
        "seed": 7,
        "runs": [SystemRun("flowprefill", ON_CPU, fast), SystemRun("stock", ON_CPU, slow)],
    }
    return Comparison(**(fields | changes))


def test_title_says_what_qualifies_the_numbers():
    """Origin with its caveat, rate, scaled lengths and SLOs, and the device."""
    assert comparison().title == (
        "5 requests of window (reconstructed), 1.50 req/s, lengths x0.25, SLOs x4, "
        "measured on a CPU"
    )


def test_title_leaves_out_scales_of_one():
    """Nothing is called scaled that was not."""
    title = comparison(length_scale=1.0, slo_scale=1.0, rate_per_s=None).title
    assert title == "5 requests of window (reconstructed), all at once, measured on a CPU"


def test_result_file_holds_what_is_needed_to_repeat(tmp_path):
    """Commit, versions, hardware, command, configuration, seed, servers and raw rows are there."""
    path = tmp_path / "new" / "result.json"
    write_json(path, comparison_document(comparison()))
    document = json.loads(path.read_text())
    provenance = document["provenance"]
    assert {"commit", "is_dirty", "command", "measured_at"} <= provenance.keys()
    assert {"python", "sglang", "torch"} <= provenance["versions"].keys()
    assert {"cpu_model", "num_cores", "memory_gib"} == provenance["hardware"].keys()
    assert (document["seed"], document["config"]) == (7, {"rate": 1.5})
    stock = document["systems"]["stock"]
    assert stock["server_info"]["device"] == "cpu"
    assert len(stock["rows"]) == 5
    assert stock["rows"][3]["error"] == "timeout"
    assert stock["summary"]["overall"]["max_s"] is None
    assert stock["summary"]["classes"]["text"]["attained"] == 0.0


def test_table_sets_systems_side_by_side():
    """Each class is one row with every system's share, and failures are named below."""
    console = Console(record=True, width=140, file=io.StringIO())
    print_comparison(comparison(), console)
    text = console.export_text()
    lines = text.splitlines()
    (first,) = [i for i, line in enumerate(lines) if "│ text" in line]
    shares = lines[first + 1]  # a cell has its TTFTs on one line and its share on the next
    assert "100.0%" in shares
    assert " 0.0%" in shares
    assert "stock: 1 requests failed, counted as misses; first: timeout" in text
    assert "worst class" in text


def test_picture_is_written(tmp_path):
    """The picture is a PNG, also where a class has no first token at all."""
    runs = [SystemRun("stock", ON_CPU, [row(0, ttft_s=None), row(1, "file", 5.0, 6.0)])]
    draw_comparison(comparison(runs=runs), tmp_path / "ttft.png")
    assert (tmp_path / "ttft.png").read_bytes().startswith(b"\x89PNG")


def test_commands_lose_the_folders_of_this_machine():
    """Absolute paths are cut to their last part, in flags with and without an equals sign."""
    arguments = ["--trace", "/home/a/t.csv", "--out=/x/y", "--flags-for", "stock=--model-path /m/n"]
    assert without_folders(arguments) == [
        "--trace",
        "t.csv",
        "--out=y",
        "--flags-for",
        "stock=--model-path n",
    ]


def test_older_result_is_not_overwritten(tmp_path):
    """A folder that holds something is refused; a missing one is made."""
    folder = new_folder(tmp_path / "a" / "b")
    (folder / "result.json").write_text("{}")
    with pytest.raises(UsageError, match="another --out"):
        new_folder(folder)
