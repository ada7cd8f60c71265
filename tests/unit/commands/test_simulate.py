"""``python -m sglang_flowprefill simulate``: answers first, on a laptop, one line for bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sglang_flowprefill
from sglang_flowprefill.__main__ import main

ROOT = Path(sglang_flowprefill.__file__).parents[1]
SLO_CONFIG = "classes:\n  chat: {ttft_slo_ms: 250}\n  document: {ttft_slo_ms: 4000}\n"


@pytest.fixture
def flags(tmp_path):
    """Return flags of a small question, with a trace and a class file."""
    trace = tmp_path / "trace.csv"
    lines = ["arrival_s,class,input_tokens,output_tokens"]
    for i in range(60):
        name, length = ("document", 12_000) if i % 5 == 0 else ("chat", 300)
        lines.append(f"{i / 4},{name},{length},20")
    trace.write_text("\n".join(lines) + "\n")
    classes = tmp_path / "slo.yaml"
    classes.write_text(SLO_CONFIG)
    return [
        "simulate",
        *("--model", "llama-3.1-8b", "--gpu", "h200", "--num-requests", "60", "--run-s", "1"),
        *("--trace", str(trace), "--slo-config", str(classes)),
    ]


def test_the_first_lines_are_the_answer(flags, capsys):
    """Rate with a band, GPUs, worst class, the other system, what binds, where costs come from."""
    assert main([*flags, "--rate", "5"]) == 0
    heads = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[:7]]
    assert heads == [
        "max rate",
        "at 5.00/s",
        "GPUs for 5.00/s",
        "worst class",
        "versus sglang",
        "binds",
        "costs from",
    ]


def test_a_missed_objective_is_an_exit_status(flags, capsys):
    """So that it works in CI."""
    assert main([*flags, "--rate", "500"]) == 1
    out = capsys.readouterr().out
    assert "MISSED" in out
    assert "not validated in a server" in out


def test_equal_seeds_give_equal_bytes(flags, tmp_path, capsys):
    """Text and every file."""
    written = []
    for name in ("a", "b"):
        main([*flags, "--rate", "5", "--out", str(tmp_path / name)])
        files = {f.name: f.read_bytes() for f in sorted((tmp_path / name).iterdir())}
        written.append((capsys.readouterr().out, files))
    assert written[0] == written[1]
    assert sorted(written[0][1]) == ["answer.json", "rows.json", "timeline.json", "ttft.svg"]


def test_its_own_rows_are_a_trace_and_a_calibration(flags, tmp_path, capsys):
    """What is written can be read again, and calibrating with it changes nothing."""
    main([*flags, "--rate", "5", "--out", str(tmp_path)])
    capsys.readouterr()
    rows = str(tmp_path / "rows.json")
    given = [*flags, "--calibrate", rows]
    given[given.index("--trace") + 1] = rows
    assert main(given) == 0
    assert "costs x 1.000" in capsys.readouterr().out


def test_two_systems_are_compared_request_by_request(flags, tmp_path, capsys):
    """Who gained and who lost, by class."""
    assert main([*flags, "--compare", "sglang,flowprefill", "--out", str(tmp_path)]) == 0
    assert "gained" in capsys.readouterr().out
    document = json.loads((tmp_path / "comparison.json").read_text())
    assert [c["class_name"] for c in document["classes"]] == ["chat", "document", "all"]
    assert document["simulated"] is True


def test_it_runs_where_neither_torch_nor_sglang_is_installed(flags):
    """In a process in which importing them fails, as on a laptop."""
    blocked = ("torch", "sglang", "greenlet", "zmq", "psutil", "prometheus_client")
    program = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {blocked!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from sglang_flowprefill.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for given in (flags, ["simulate", "--model", "qwen2.5-14b", "--gpu", "b200", "--run-s", "1"]):
        result = subprocess.run(
            [sys.executable, "-c", program, *given],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("max rate: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "llama-9"}, "neither a folder with a config.json nor one of"),
        ({"--model": "llama-3.1-70b"}, "does not fit"),
        ({"--gpu": "v100"}, "choose one of"),
        ({"--versus": "orca"}, "choose one of"),
        ({"--tp": "7"}, "heads to divide"),
        ({"--fail-instances": "1", "--rate": "5"}, "must be fewer than 1 instances"),
        ({"--trace": "no.csv"}, "no.csv: cannot be read"),
        ({"--kv-tokens": "1000"}, "the longest request has"),
        ({"--compare": "sglang"}, "give two systems"),
        ({"--costs": "table", "--gpu": "l40s"}, "no table of llama-3.1-8b"),
    ],
)
def test_bad_input_gets_one_clear_line(flags, changes, message, capsys):
    """What was wrong, the value, what to do."""
    for flag, value in changes.items():
        if flag in flags:
            flags[flags.index(flag) + 1] = value
        else:
            flags += [flag, value]
    assert main(flags) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_text_in_a_number_and_a_folder_without_a_config_get_one_clear_line(flags, tmp_path, capsys):
    """The line of the file is named."""
    trace = Path(flags[flags.index("--trace") + 1])
    trace.write_text(trace.read_text().replace("12000", "many", 1))
    assert main(flags) == 1
    assert "trace.csv:2: column 'input_tokens'" in capsys.readouterr().err
    flags[flags.index("--model") + 1] = str(tmp_path)
    assert main(flags) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_class_without_requests_is_named(flags, capsys):
    """Nothing is said about it, and that is said."""
    path = Path(flags[flags.index("--slo-config") + 1])
    path.write_text(SLO_CONFIG + "  batch: {ttft_slo_ms: 60000}\n")
    assert main(flags) == 0
    assert "no request is of class 'batch'" in capsys.readouterr().err


def test_its_own_speed_is_printed_for_every_kind_of_decode(flags, capsys):
    """A figure to read, and no promise."""
    assert main([*flags, "--speed", "--rate", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("requests simulated per second" in line for line in lines)
