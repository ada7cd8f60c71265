"""An ablation changes one setting at a time and compares seed by seed."""

import asyncio
import json
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_sglang import SERVER_INFO, FakeSGLang
from rich.console import Console
from rows import row

from bench.__main__ import _parser
from bench.ablation import command, measuring
from bench.ablation.points import AblationPoint, ServerUse, levels_of
from bench.ablation.report import ablation_table
from bench.ablation.variations import DEFAULT, VARIATIONS, variations_for
from bench.errors import UsageError
from bench.systems.servers import ServerDescription
from sglang_flowprefill.config import FLAG_PREFIX, FlowPrefillConfig, parse_setting
from sglang_flowprefill.observe.timeline import Timeline
from sglang_flowprefill.observe.timeline_reader import RunningSlice

USE = ServerUse(2.0, 0.5, 1.1, 0.002, 0.01, None)
OPTIONS = ["--num-requests", "3", "--length-scale", "0.01", "--rates", "50,100", "--seeds", "2"]


def point(variation, num_met, seed=0, rate=2.0):
    """Return a replay of ten requests of which so many were in time."""
    rows = tuple(row(i, "text", 0.5 if i < num_met else 2.0) for i in range(10))
    return AblationPoint(variation, rate, seed, USE, rows)


@pytest.fixture
def started(monkeypatch):
    """Run fakes instead of servers; return the flags of each that was started."""
    flags_of = []

    @asynccontextmanager
    async def running(_name, options, _log, _longest):
        flags_of.append(options.flags)
        trace = Path(options.flags[options.flags.index("--flowprefill-trace") + 1])
        timeline = Timeline(trace, time.monotonic)
        statistics = {"num_rounds": 0, "num_preemptions": 0}
        batches = iter(range(1000))

        async def prefill(_num_tokens):
            batch = next(batches)
            timeline.on_resume(batch, "r (text)", time.monotonic(), reason="first")
            timeline.on_finish(batch, time.monotonic() + 0.001, outcome="finished")
            timeline._file.flush()
            statistics["num_rounds"] += 2

        def info():
            return SERVER_INFO | {"internal_states": [{"flowprefill": dict(statistics)}]}

        with closing(timeline):
            async with FakeSGLang(prefill, info=info).running() as endpoint:
                yield SimpleNamespace(
                    endpoint=endpoint, description=ServerDescription(), process_id=1
                )

    monkeypatch.setattr(command, "running_server", running)
    monkeypatch.setattr(measuring, "scheduler_cpu_s", lambda _process_id: 0.0)
    return flags_of


def run(folder, *options):
    """Run the command."""
    args = _parser().parse_args(["ablation", *OPTIONS, *options, "--out", str(folder)])
    asyncio.run(args.run(args))


def test_every_variation_is_a_command_line_that_the_launcher_takes():
    """A misspelt flag would end an hour's run."""
    for variation in VARIATIONS.values():
        flags, values = variation.flags[::2], variation.flags[1::2]
        names = [flag.removeprefix(FLAG_PREFIX).replace("-", "_") for flag in flags]
        given = zip(names, values, flags, strict=True)
        FlowPrefillConfig(**{name: parse_setting(name, text, flag) for name, text, flag in given})


def test_settings_without_effect_on_a_cpu_are_left_out_there():
    """A CPU has no operators in flight to bound."""
    assert not [name for name in variations_for("cpu") if name.startswith("run-ahead")]
    assert set(variations_for("cuda")) == set(VARIATIONS)


def test_each_variation_has_a_server_and_each_seed_and_rate_a_replay(started, tmp_path, capsys):
    """The result file holds all of them, with what the server did."""
    run(tmp_path, "--variations", f"{DEFAULT},fcfs")
    assert len(started) == 2
    assert "fcfs" in started[1]
    document = json.loads((tmp_path / "result.json").read_text())
    assert len(document["points"]) == 2 * 2 * 2
    use = document["points"][0]["use"]
    assert use["rounds_per_request"] == 2.0
    assert use["wait_p99_s"] > 0.0
    assert set(document["servers"]) == {DEFAULT, "fcfs"}
    assert "against default" in capsys.readouterr().out
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_ablation_goes_on(started, tmp_path):
    """What is measured is not measured again; another rate is added to it."""
    run(tmp_path, "--variations", DEFAULT)
    run(tmp_path, "--variations", f"{DEFAULT},fcfs")
    assert len(started) == 2
    assert len(json.loads((tmp_path / "result.json").read_text())["points"]) == 8


def test_another_workload_does_not_go_into_the_same_result(started, tmp_path):
    """Its numbers would not compare."""
    run(tmp_path, "--variations", DEFAULT)
    with pytest.raises(UsageError, match="slo_scale"):
        run(tmp_path, "--variations", DEFAULT, "--slo-scale", "3")


def test_variations_are_compared_seed_by_seed():
    """A hard seed is hard for both."""
    points = [point(DEFAULT, 9, 0), point(DEFAULT, 5, 1), point("fcfs", 6, 0), point("fcfs", 2, 1)]
    ours, fcfs = levels_of(points)
    gain = fcfs.gain_over(ours)
    assert (gain.least, gain.most) == pytest.approx((-0.3, -0.3))


def test_the_table_names_the_worst_class_and_the_difference():
    """Percent for shares, points for differences."""
    console = Console(width=240, record=True)
    console.print(ablation_table("t", levels_of([point(DEFAULT, 9), point("fcfs", 6)])))
    text = console.export_text()
    assert "-30.0" in text
    assert "text 60.0%" in text
    assert "2.0 / 10" in text


def test_a_switch_lasts_from_the_yield_to_whatever_runs_next():
    """Ends of prefills are no switches."""

    def piece(start_s, end_s, end):
        return RunningSlice(0, "", "", start_s, end_s, end, (), None, ())

    slices = [piece(0.0, 1.0, "yield"), piece(1.5, 2.0, "finished"), piece(4.0, 5.0, "finished")]
    assert measuring.switch_durations_s(slices) == [0.5]
