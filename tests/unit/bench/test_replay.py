"""Replay is an open loop that accounts for every request."""

import asyncio
import json
from dataclasses import replace

import pytest
from fake_sglang import FakeSGLang

from bench.replaying.metrics import is_met
from bench.replaying.replay import ReplayOptions, replay, replay_towards
from bench.systems.engine import Endpoint
from bench.systems.sglang import STOCK
from bench.workloads.request import TraceRequest

SLOS_S = {"text": 1.0, "file": 24.0}
DEFAULTS = ReplayOptions()
BURST = [TraceRequest(0.0, "text", 3, 5), TraceRequest(0.0, "file", 40, 2)]


def run(fake, requests, options=DEFAULTS, **kwargs):
    """Replay the requests against the fake server."""

    async def go():
        async with fake.running() as server:
            return await replay(server, requests, SLOS_S, options, **kwargs)

    return asyncio.run(go())


def test_ttft_is_measured_from_send_to_first_token():
    """The time that the server takes for a prefill is the TTFT, and little else."""
    fake = FakeSGLang(prefill=lambda _n: asyncio.sleep(0.03))
    (row,) = run(fake, BURST[:1])
    assert row.error is None
    assert 0.03 <= row.ttft_s < 1.0
    assert row.sent_s <= row.first_token_s <= row.finished_s
    assert row.ttft_from_schedule_s == pytest.approx(row.ttft_s + row.lateness_s)


def test_requests_do_not_wait_for_each_other():
    """The first request is answered only after the second arrived, so the loop is open."""

    async def go():
        second_arrived = asyncio.Event()

        async def prefill(num_tokens):
            if num_tokens == 40:
                second_arrived.set()
            await second_arrived.wait()

        async with FakeSGLang(prefill=prefill).running() as server:
            requests = [BURST[0], TraceRequest(0.02, "file", 40, 1)]
            options = ReplayOptions(drain_timeout_s=5)
            return await replay(server, requests, SLOS_S, options)

    rows = asyncio.run(go())
    assert [row.error for row in rows] == [None, None]
    assert rows[1].sent_s >= 0.02
    assert rows[0].first_token_s >= rows[1].sent_s


def test_schedule_and_lateness_are_recorded():
    """A request is never sent before it is due, and each row knows how late it was."""
    requests = [TraceRequest(7.0 + i / 100, "text", 2, 1) for i in range(4)]
    rows = run(FakeSGLang(), requests)
    assert [row.scheduled_s for row in rows] == pytest.approx([0.0, 0.01, 0.02, 0.03])
    assert all(0 <= row.lateness_s < 60.0 for row in rows)


def test_error_becomes_a_row_without_ttft():
    """A request that the server refuses has a row with the reason, and the others go on."""
    rows = run(FakeSGLang(broken_lengths=frozenset({3})), BURST)
    assert "no such prompt" in rows[0].error
    assert rows[0].ttft_s is None
    assert rows[1].error is None


def test_replay_ends_although_the_server_hangs():
    """What is unanswered after the drain time is a timeout row."""
    fake = FakeSGLang(prefill=lambda _n: asyncio.sleep(0.05))
    rows = run(fake, BURST, ReplayOptions(drain_timeout_s=0.02))
    assert [row.ttft_s for row in rows] == [None, None]
    assert all(row.error.startswith("timeout") for row in rows)


def test_unreachable_server_gives_error_rows():
    """A refused connection is a miss, not a crash of the client."""
    rows = asyncio.run(
        replay(Endpoint("http://127.0.0.1:9", STOCK), BURST, SLOS_S, ReplayOptions())
    )
    assert [row.ttft_s for row in rows] == [None, None]
    assert all("Connect" in row.error for row in rows)


def test_request_says_what_the_trace_says():
    """Prompt length, greedy sampling, one token, and the objective in headers reach the server."""
    fake = FakeSGLang()
    run(fake, BURST)
    body = next(body for body in fake.bodies if len(body["input_ids"]) == 40)
    headers = fake.headers[fake.bodies.index(body)]
    assert body["stream"] is True
    assert body["sampling_params"] == {"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True}
    assert headers["x-slo-ttft-ms"] == "24000"
    assert headers["x-slo-class"] == "file"


def test_options_change_what_is_sent():
    """Original output lengths are asked for and counted; SLO headers can be left out."""
    fake = FakeSGLang()
    options = ReplayOptions(original_output_lengths=True, send_slo=False, send_class=False)
    rows = run(fake, BURST, options)
    assert [row.num_generated_tokens for row in rows] == [5, 2]
    assert not any(name.lower().startswith("x-slo") for h in fake.headers for name in h)


def test_every_system_gets_the_same_distinct_prompts():
    """Two replays with one seed send the same prompts, no two of them alike."""
    bodies = []
    for _ in range(2):
        fake = FakeSGLang()
        run(fake, [TraceRequest(i / 1000, "text", 6, 1) for i in range(8)])
        bodies.append(sorted(json.dumps(body["input_ids"]) for body in fake.bodies))
    assert bodies[0] == bodies[1]
    assert len(set(bodies[0])) == 8


def test_progress_is_told_of_every_request():
    """The callback sees each row once, failed ones too."""
    seen = []
    fake = FakeSGLang(broken_lengths=frozenset({3}))
    rows = run(fake, BURST, on_finished=seen.append)
    assert sorted(seen, key=lambda row: row.index) == rows


def run_towards(goal, fake, requests):
    """Replay towards a goal against the fake server."""

    async def go():
        async with fake.running() as server:
            return await replay_towards(server, requests, SLOS_S, DEFAULTS, goal=goal)

    return asyncio.run(go())


def test_a_replay_ends_when_its_goal_is_out_of_reach():
    """Requests that wait for longer than their objective are misses before they are answered."""
    fake = FakeSGLang(prefill=lambda _n: asyncio.sleep(3600))
    burst = [TraceRequest(i / 1000, "text", 3, 5) for i in range(10)]
    rows, is_abandoned = run_towards(0.9, fake, burst)
    assert is_abandoned
    assert {row.index for row in rows} == set(range(10))
    assert all(row.ttft_s is None and "out of reach" in row.error for row in rows)


def test_a_replay_within_reach_of_its_goal_goes_on():
    """Every request has its row, as without a goal."""
    rows, is_abandoned = run_towards(0.9, FakeSGLang(), BURST)
    assert not is_abandoned
    assert [row.error for row in rows] == [None, None]


def test_time_per_output_token_counts_where_it_has_an_objective():
    """A request that met its TTFT misses all the same if its later tokens are slow."""
    fake = FakeSGLang(before_token=lambda: asyncio.sleep(0.05))
    options = ReplayOptions(original_output_lengths=True, slo_tpot_s=0.01)
    (row,) = run(fake, BURST[:1], options)
    assert row.tpot_s >= 0.05
    assert not is_met(row)
    assert is_met(replace(row, slo_tpot_s=10.0))
    assert fake.headers[0]["x-slo-tpot-ms"] == "10"
