"""The whole command, with servers that prefill without a model."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from fake_sglang import FakeSGLang
from timelines import TimelineServer, timeline_of

from bench import __main__ as command_line
from bench.blocking import command, sending
from bench.blocking.options import FULL, QUICK, blocking_options, granularity_flags, tax_systems
from bench.errors import BenchError, ServerError, UsageError
from bench.systems.engine import Endpoint, ServerOptions
from bench.systems.servers import ServerDescription

TINY = (
    "blocking --lengths 200,400 --num-samples 3 --num-solo 1 --urgent-tokens 10 --num-idle 2 "
    "--switch-tokens 400 --num-switch 2 --num-switch-prompts 1 --tax-rounds 2 --tax-tokens 50 "
    "--num-tax-short 2 --spread-s 0.01 --granularities operator,chunk --model-path unused"
)


@dataclass
class _Server:
    endpoint: Endpoint
    description: ServerDescription


def flag_value(flags, name):
    """Return what follows a flag."""
    return flags[flags.index(name) + 1] if name in flags else None


@pytest.fixture
def started(monkeypatch):
    """Replace servers by fakes; list the flags that each was started with."""
    started = []

    @asynccontextmanager
    async def running_server(name, options, log, longest_prompt):
        started.append((name, options.flags))
        trace = flag_value(options.flags, "--flowprefill-trace")
        preempts = flag_value(options.flags, "--flowprefill-granularity") == "operator"
        server = TimelineServer(trace or log.with_suffix(".json"), preempts=preempts)
        async with FakeSGLang(prefill=server.prefill).running() as endpoint:
            yield _Server(endpoint, ServerDescription(server_info={"device": "cpu"}))
        server.timeline.close()

    monkeypatch.setattr(command, "running_server", running_server)
    monkeypatch.setattr(command, "model_with_context", lambda path, _num_tokens: path)
    return started


def run(text):
    """Run a command line."""
    args = command_line._parser().parse_args(text.split())
    asyncio.run(args.run(args))


def test_blocking_is_measured_for_every_granularity_and_length(started, tmp_path, capsys):
    """Tables, picture and a result file with samples, whether prefills yield or not."""
    run(f"{TINY} --out {tmp_path}")
    document = json.loads((tmp_path / "result.json").read_text())
    assert {"provenance", "config", "seed", "schema_version"} <= document.keys()
    ends = {}
    for name, result in document["blocking"].items():
        assert [length["num_tokens"] for length in result["lengths"]] == [200, 400]
        for length in result["lengths"]:
            assert length["num_sent"] == 3
            assert 1 <= length["observed"]["num_samples"] == len(length["arrivals"]) <= 3
            assert length["from_send"]["p50_s"] >= 0.0
        ends[name] = {a["end"] for length in result["lengths"] for a in length["arrivals"]}
    assert "yield" in ends["operator"]
    assert ends["chunk"] == {"finished"}
    assert document["blocking"]["operator"]["switch"]["num_suspensions"] >= 1
    assert document["blocking"]["chunk"]["switch"] is None
    assert len(document["tax"]["samples"]) == 2 * 2 * 4
    assert document["servers"].keys() >= {"operator", "chunk", "tax-off", "tax-stock"}
    assert (tmp_path / "blocking.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for heading in ("uniformly random arrival", "Cost of a suspension", "idle queue"):
        assert heading in printed


def test_one_part_can_be_measured_alone(started, tmp_path):
    """The tax needs no timeline, blocking no stock server."""
    run(f"{TINY} --parts tax --out {tmp_path / 'a'}")
    assert [name for name, _ in started] == ["flowprefill"] * 3 + ["stock-tuned"]
    assert not any("--flowprefill-trace" in flags for _, flags in started)
    started.clear()
    run(f"{TINY} --parts blocking --granularities operator --out {tmp_path / 'b'}")
    assert [name for name, _ in started] == ["flowprefill"]


def test_timeline_without_the_prompts_is_refused(started, tmp_path, monkeypatch):
    """A server whose clock is not the client's would give numbers out of nowhere."""
    monkeypatch.setattr(command, "read_timeline", lambda _path: timeline_of())
    with pytest.raises(BenchError, match="clock"):
        run(f"{TINY} --parts blocking --granularities operator --out {tmp_path}")


def test_machine_with_two_clocks_is_refused(monkeypatch):
    """Client and server compare times, which must come from one clock."""

    def get_clock_info(name):
        return SimpleNamespace(implementation=name)

    monkeypatch.setattr(sending.time, "get_clock_info", get_clock_info)
    with pytest.raises(UsageError, match="one clock"):
        sending.require_shared_clock()


def test_failed_prompt_stops_the_measurement():
    """A wait computed beside failures would mean nothing."""

    async def go():
        fake = FakeSGLang(broken_lengths=frozenset({512}))
        async with fake.running() as endpoint:
            await sending.measure_granularity(endpoint, QUICK)

    with pytest.raises(ServerError, match="512 tokens failed"):
        asyncio.run(go())


def test_what_is_not_given_is_quick_or_full():
    """Single values can be changed in either."""
    parse = command_line._parser().parse_args
    assert blocking_options(parse(["blocking"])) == FULL
    assert blocking_options(parse(["blocking", "--quick"])) == QUICK
    changed = blocking_options(parse(["blocking", "--quick", "--lengths", "64,32", "--seed", "0"]))
    assert (changed.lengths, changed.num_samples) == ((32, 64), QUICK.num_samples)


@pytest.mark.parametrize(
    "option", ["--lengths=0", "--parts=blocking,x", "--granularities=layer,layer"]
)
def test_impossible_option_is_refused(option, capsys):
    """Before any server is started."""
    with pytest.raises(SystemExit):
        command_line._parser().parse_args(["blocking", option])
    assert "expected" in capsys.readouterr().err


def test_granularities_differ_in_boundaries_only():
    """No tiles but where asked for; chunks as long as asked for."""
    assert granularity_flags("chunk", FULL)[-1] == "512"
    for name in ("layer", "operator"):
        flags = granularity_flags(name, FULL)
        assert flag_value(flags, "--flowprefill-granularity") == name
        assert flag_value(flags, "--flowprefill-max-operator-ms") == "0"
    assert flag_value(granularity_flags("tiled", FULL), "--flowprefill-max-operator-ms") is None


def test_tax_is_compared_with_the_server_that_never_preempts():
    """Whatever systems are asked for, the reference is among them."""
    systems = tax_systems(replace(FULL, tax_systems=("tiled",)))
    assert list(systems) == ["off", "tiled"]
    assert systems["off"] == ("flowprefill", ("--flowprefill-granularity", "off"))


def test_cache_grows_with_the_longest_prompt(monkeypatch):
    """On a CPU the KV cache has a fixed size, which a longer prompt would not fit."""
    monkeypatch.setattr(
        command, "model_with_context", lambda path, num_tokens: path / str(num_tokens)
    )
    longer = command._with_long_context(ServerOptions(model_path="m"), FULL)
    assert int(flag_value(longer.flags, "--max-total-tokens")) > max(FULL.lengths)
    assert longer.model_path.startswith("m/32")
    assert command._with_long_context(ServerOptions(model_path="m"), QUICK).flags == ()
    on_gpu = ServerOptions(model_path="m", device="cuda")
    assert command._with_long_context(on_gpu, FULL).flags == ()
