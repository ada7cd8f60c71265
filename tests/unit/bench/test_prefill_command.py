"""The whole command, with servers that prefill without a model."""

import asyncio
import json
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from fake_sglang import FakeSGLang

from bench import __main__ as command_line
from bench.errors import ServerError, UsageError
from bench.prefill import command
from bench.prefill.options import PrefillCase, PrefillOptions
from bench.systems.servers import ServerDescription

TINY = (
    "prefill --systems flowprefill,stock --rounds 2 --lengths 40,8 --prefix-tokens 50 "
    "--extension-tokens 5 --chunked-tokens 30 --chunk-tokens 10 --max-prompts 3 "
    "--tokens-of-a-kind 80 --model-path unused"
)


@pytest.fixture
def started(monkeypatch):
    """Replace servers by fakes; list name, flags and fake of each."""
    started = []

    @asynccontextmanager
    async def running_server(name, options, log, longest_prompt):
        fake = FakeSGLang(caches=options.use_prefix_cache)
        started.append((name, options.flags, longest_prompt, fake))
        async with fake.running() as endpoint:
            description = ServerDescription(server_info={"device": "cpu"})
            yield SimpleNamespace(endpoint=endpoint, description=description)

    monkeypatch.setattr(command, "running_server", running_server)
    return started


def run(text):
    """Run a command line."""
    args = command_line._parser().parse_args(text.split())
    asyncio.run(args.run(args))


def test_every_system_is_asked_for_every_case_in_every_round(started, tmp_path, capsys):
    """Table, picture, and a result file with raw times and what each was compared with."""
    run(f"{TINY} --out {tmp_path}")
    document = json.loads((tmp_path / "result.json").read_text())
    assert {"provenance", "config", "seed", "schema_version"} <= document.keys()
    assert document["reference"] == "flowprefill"
    assert document["servers"].keys() == {
        "flowprefill", "flowprefill-10", "stock", "stock-10"
    }  # fmt: skip
    cases = {tuple(summary["case"].values()) for summary in document["summary"]}
    assert cases == {(8, 0, None), (40, 0, None), (5, 50, None), (30, 0, 10)}
    assert all(summary["num_rounds"] == 2 for summary in document["summary"])
    assert len(document["samples"]) == 2 * 2 * 4
    sent = {s["case"]["num_tokens"]: len(s["ttfts_s"]) for s in document["samples"]}
    assert sent == {8: 3, 40: 2, 5: 3, 30: 2}
    assert (tmp_path / "prefill.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for text in ("5 after 50 cached", "30 in chunks of 10", "measured on a CPU"):
        assert text in printed


def test_one_server_at_a_time_forwards_and_backwards(started, tmp_path):
    """The second round starts the systems in reverse, each with its own flag for chunks."""
    run(f"{TINY} --parts lengths,chunks --out {tmp_path}")
    plain = [name for name, flags, _, _ in started if not flags]
    assert plain == ["flowprefill", "stock", "stock", "flowprefill"]
    chunked = {name: flags for name, flags, _, _ in started if flags}
    assert chunked == {
        "flowprefill": ("--flowprefill-max-chunk-tokens", "10"),
        "stock": ("--chunked-prefill-size", "10"),
    }


def test_systems_of_a_round_get_the_same_prompts(started, tmp_path):
    """Equal within a round, fresh in the next; warm-up reaches the longest."""
    run(f"{TINY} --parts lengths,extension --out {tmp_path}")
    bodies = [[body["input_ids"] for body in fake.bodies] for _, _, _, fake in started]
    assert bodies[0] == bodies[1] != bodies[2] == bodies[3]
    assert {longest for _, _, longest, _ in started} == {55}


def test_prefix_that_is_not_cached_stops_the_measurement(started, tmp_path):
    """A number for a prefix that was computed again would mean nothing."""
    with pytest.raises(ServerError, match="only 0 of 50 tokens were cached"):
        run(f"{TINY} --no-prefix-cache --parts extension --out {tmp_path}")


def test_peer_that_is_not_installed_is_known_before_anything_runs(started, tmp_path, monkeypatch):
    """A measurement of an hour does not end with a missing package."""

    def plan_launch(name, options, port):
        if name == "vllm":
            raise UsageError("make peers")

    monkeypatch.setattr(command, "plan_launch", plan_launch)
    with pytest.raises(UsageError, match="make peers"):
        run(f"{TINY} --systems stock,vllm --out {tmp_path}")
    assert not started


@pytest.mark.parametrize(
    ("case", "num_prompts"),
    [
        (PrefillCase(32), 10),
        (PrefillCase(2048), 4),
        (PrefillCase(256, 7040), 10),
        (PrefillCase(8000), 1),
        (PrefillCase(20_000), 1),
    ],
)
def test_short_prompts_are_sent_more_often(case, num_prompts):
    """About as many tokens of each kind, within bounds."""
    assert PrefillOptions().num_prompts(case) == num_prompts
