"""The command line turns options into the library's types, and errors into one line."""

import sys

import pytest

from bench import __main__ as command_line
from bench.arguments import config_of, server_options, workload_spec
from bench.workloads.trace_file import read_trace


def test_compare_options_reach_the_library():
    """Rate, window, scales, systems and flags arrive as written."""
    text = (
        "compare --trace /data/t.csv --rate 1.5 --num-requests 100 --length-scale 0.25 "
        "--slo-scale 4 --systems flowprefill,stock --seed 3 --slo code=0.5 --out bench-results/x"
    )
    arguments = [*text.split(), "--flags-for", "stock=--schedule-policy lpm"]
    args = command_line._parser().parse_args(arguments)
    spec = workload_spec(args)
    assert (spec.rate_per_s, spec.num_requests, spec.length_scale, spec.seed) == (1.5, 100, 0.25, 3)
    assert args.systems == ("flowprefill", "stock")
    assert server_options(args).flags_for == {"stock": ("--schedule-policy", "lpm")}
    assert config_of(args)["trace"] == "t.csv"
    assert config_of(args)["slo"] == [["code", 0.5]]


@pytest.mark.parametrize(
    "option",
    [
        "--rate=0",
        "--rate=inf",
        "--num-requests=-1",
        "--systems=stock,other",
        "--systems=stock,stock",
    ],
)
def test_impossible_option_is_refused_before_anything_runs(option, capsys):
    """A value out of range, an unknown system or one named twice is a usage error."""
    with pytest.raises(SystemExit):
        command_line._parser().parse_args(["compare", option])
    assert f"argument {option.partition('=')[0]}: " in capsys.readouterr().err


def test_generate_writes_a_trace(monkeypatch, tmp_path, capsys):
    """The generated file reads back with the number of requests asked for."""
    path = tmp_path / "synthetic.csv.gz"
    monkeypatch.setattr(
        sys, "argv", ["bench", "generate", "--num-requests", "9", "--out", str(path)]
    )
    assert command_line.main() == 0
    assert len(read_trace(path)) == 9
    assert "built-in generator" in capsys.readouterr().out


def test_fault_of_the_user_is_one_line(monkeypatch, tmp_path, capsys):
    """A missing trace ends with status 1 and a message, not a traceback."""
    path = tmp_path / "none.csv"
    monkeypatch.setattr(sys, "argv", ["bench", "generate", "--trace", str(path)])
    assert command_line.main() == 1
    assert capsys.readouterr().err.startswith(f"bench: {path}: cannot be read")
