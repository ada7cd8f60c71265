"""The whole search, against servers that take a known time for each prompt."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from fake_sglang import FakeSGLang

from bench import __main__ as command_line
from bench.errors import BenchError, ServerError, UsageError
from bench.goodput import command
from bench.goodput.analysis import greatest_loads
from bench.goodput.result import read_result
from bench.systems.servers import ServerDescription

# Each prompt takes 40 ms, one at a time; all objectives are 0.25 s.
TINY = (
    "goodput --systems flowprefill --num-seeds 2 --window-s 0.5 --min-requests 15 "
    "--resolution 0.4 --lowest-rate 2 --slo image=0.25 --slo search=0.25 --slo file=0.25 "
    "--length-scale 0.001"
)


def run(text):
    """Run a command line."""
    args = command_line._parser().parse_args(text.split())
    asyncio.run(args.run(args))


@pytest.fixture
def servers(monkeypatch):
    """Replace servers by fakes with one worker; list the systems started."""
    started = []

    @asynccontextmanager
    async def running_server(name, options, log, longest_prompt):
        if name == "stock":
            raise ServerError("stock did not start")
        started.append(name)
        worker = asyncio.Lock()

        async def prefill(_num_tokens):
            async with worker:
                await asyncio.sleep(0.04)

        async with FakeSGLang(prefill=prefill).running() as endpoint:
            description = ServerDescription(server_info={"device": "cpu"})
            yield SimpleNamespace(endpoint=endpoint, description=description)

    monkeypatch.setattr(command, "running_server", running_server)
    return started


def test_every_seed_has_an_answer_between_a_pass_and_a_failure(servers, tmp_path, capsys):
    """The result holds solo prefills, all probes with rows, and one search for each seed."""
    run(f"{TINY} --out {tmp_path}")
    system = read_result(tmp_path / "goodput.json").systems["flowprefill"]
    assert [search.seed for search in system.searches] == [0, 1]
    for search in system.searches:
        assert 0 < search.max_rate_per_s < search.failed_rate_per_s
        assert search.failed_rate_per_s <= search.max_rate_per_s * 1.4 + 1e-9
        answer = system.best_probe(search)
        assert answer.attained >= 0.9
        assert len(answer.rows) == answer.num_requests >= 15
    assert any(probe.is_abandoned for probe in system.probes)
    assert all(seconds >= 0.04 for _, seconds in system.solo)
    assert "max req/s" in capsys.readouterr().out


def test_what_one_seed_could_not_find_is_not_looked_for_again_from_above(servers, tmp_path):
    """Where the first seed met the goal at no rate, the next tries the lowest and is done."""
    run(f"{TINY} --slo text=0.001 --slo image=0.001 --out {tmp_path}")
    system = read_result(tmp_path / "goodput.json").systems["flowprefill"]
    assert [search.max_rate_per_s for search in system.searches] == [0, 0]
    assert [probe.rate_per_s for probe in system.probes if probe.seed == 1] == [2]


def test_a_finished_search_is_not_repeated(servers, tmp_path, capsys):
    """Resuming starts no server for what is known, and searches what is new."""
    run(f"{TINY} --num-seeds 1 --out {tmp_path}")
    known = read_result(tmp_path / "goodput.json").systems["flowprefill"]
    run(f"{TINY} --num-seeds 1 --resume --out {tmp_path}")
    assert servers == ["flowprefill"]
    assert "known already" in capsys.readouterr().out
    run(f"{TINY} --num-seeds 1 --goals 0.5,0.9 --resume --out {tmp_path}")
    more = read_result(tmp_path / "goodput.json").systems["flowprefill"]
    assert servers == ["flowprefill"] * 2
    assert more.probes[: len(known.probes)] == known.probes
    assert {search.goal for search in more.searches} == {0.5, 0.9}


def test_fixed_rates_are_replayed_whole_at_every_objective_scale(servers, tmp_path):
    """However few are in time, so that curves of all systems have the same points."""
    options = "--num-seeds 1 --slo-scales 1,0.1 --probe-rates 60"
    run(f"{TINY} {options} --out {tmp_path}")
    probes = read_result(tmp_path / "goodput.json").systems["flowprefill"].probes
    whole = [p for p in probes if p.rate_per_s == 60 and not p.is_abandoned]
    assert sorted(probe.slo_scale for probe in whole) == [0.1, 1.0]
    run(f"{TINY} {options} --resume --out {tmp_path}")
    assert len(servers) == 1


def test_the_first_system_replays_what_the_best_peer_bore(servers, tmp_path):
    """Each seed's requests at the rate of the peer's answer, whole, and only once."""
    options = "--systems flowprefill,stock-kernel --equal-load"
    run(f"{TINY} {options} --out {tmp_path}")
    ours, peer = read_result(tmp_path / "goodput.json").systems.values()
    loads = greatest_loads(peer, 1.0, 0.9)
    assert [load.seed for load in loads] == [0, 1]
    for load in loads:
        replayed, theirs = ours.probe_of(load), peer.probe_of(load)
        assert [r.num_input_tokens for r in replayed.rows] == [
            r.num_input_tokens for r in theirs.rows
        ]
    run(f"{TINY} {options} --resume --out {tmp_path}")
    assert len(servers) == 3


def test_another_workload_does_not_go_on_with_a_result(servers, tmp_path):
    """Rates of other requests cannot be mixed."""
    run(f"{TINY} --num-seeds 1 --out {tmp_path}")
    with pytest.raises(UsageError, match="another workload"):
        run(f"{TINY} --slo text=0.5 --num-seeds 1 --resume --out {tmp_path}")
    with pytest.raises(UsageError, match="another workload"):
        run(f"{TINY} --num-requests 100 --num-seeds 1 --resume --out {tmp_path}")


def test_a_rate_is_not_an_option_of_its_search(servers, tmp_path):
    """It would be ignored, so it is refused, and the error names the options that are meant."""
    with pytest.raises(UsageError, match=r"--rate 2: .*--start-rate"):
        run(f"{TINY} --rate 2 --out {tmp_path}")
    assert servers == []


def test_a_system_that_fails_is_left_out(servers, tmp_path, capsys):
    """The others are still measured; if none can be, that is an error."""
    run(f"{TINY} --num-seeds 1 --systems stock,flowprefill --out {tmp_path / 'both'}")
    assert "stock is left out: stock did not start" in capsys.readouterr().out
    assert read_result(tmp_path / "both" / "goodput.json").systems["flowprefill"].searches
    with pytest.raises(BenchError, match="no system"):
        run(f"{TINY} --systems stock --out {tmp_path / 'none'}")
