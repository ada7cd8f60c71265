"""Gaps between tokens, alone and with long prompts in between, against a fake server."""

import asyncio
import math
from statistics import median

import pytest
from fake_sglang import FakeSGLang
from rich.console import Console

from bench import streaming
from bench.errors import ServerError
from bench.streaming import Phase, StreamingOptions, StreamingResult, measure_streaming
from bench.streaming import print_streaming as print_result


@pytest.fixture(autouse=True)
def _long_prompts_soon(monkeypatch):
    monkeypatch.setattr(streaming, "_HEAD_START_S", 0.02)


OPTIONS = StreamingOptions(
    num_streams=2,
    stream_tokens=4,
    output_tokens=6,
    long_tokens=50,
    every_s=0.1,
    phase_s=0.35,
)


def measure(**fake_options):
    """Run the test against a fake server; return the result and the server."""

    async def go():
        fake = FakeSGLang(**fake_options)
        async with fake.running() as server:
            return await measure_streaming(server, OPTIONS), fake

    return asyncio.run(go())


def test_long_prompts_come_in_the_second_part_only():
    """Streams run in both parts, long prompts on schedule in one, each with its class."""
    result, fake = measure(before_token=lambda: asyncio.sleep(0.01))
    lengths = [len(body["input_ids"]) for body in fake.bodies]
    assert result.alone.long_ttfts_s == []
    assert len(result.with_long.long_ttfts_s) == lengths.count(50) >= 2
    assert min(i for i, n in enumerate(lengths) if n == 50) > 2
    classes = {headers["x-slo-class"] for headers in fake.headers}
    assert classes == {"stream", "long"}
    for phase in (result.alone, result.with_long):
        assert phase.gaps_s
        assert median(phase.gaps_s) >= 0.009
        assert len(phase.first_tokens_s) > 2, "a stream that ends is followed by another"


def test_a_server_that_stalls_shows_in_the_gaps():
    """A pause of all streams while a long prompt prefills is a gap of each of them."""
    is_stalled = asyncio.Event()

    async def prefill(num_tokens):
        if num_tokens == 50:
            is_stalled.set()
            await asyncio.sleep(0.06)
            is_stalled.clear()

    async def before_token():
        await asyncio.sleep(0.005)
        while is_stalled.is_set():  # noqa: ASYNC110 (a test of what a reader sees)
            await asyncio.sleep(0.005)

    result, _ = measure(prefill=prefill, before_token=before_token)
    figures = result.figures()
    assert max(result.with_long.gaps_s) > 0.04
    assert figures["p99 with long / alone"] > 1.5


def test_a_stream_that_fails_ends_the_test():
    """Gaps of a broken server are no result."""
    with pytest.raises(ServerError, match="stream failed"):
        measure(broken_lengths=frozenset({4}))


def test_a_part_without_long_prompts_that_ended_prints_no_number_for_them():
    """What was not measured is not a zero."""
    phase = Phase([0.1, 0.2], [0.3], [], 1.0)
    stalled = Phase([0.1, 0.4], [], [None], 1.0)
    figures = StreamingResult(phase, stalled).figures()
    assert math.isnan(figures["long TTFT p50 s"])
    console = Console(width=100, record=True)
    print_result("title", {"ours": StreamingResult(phase, stalled)}, console)
    assert "nan" in console.export_text()


def test_a_server_that_stops_decoding_has_a_gap_up_to_the_end():
    """What a stream still waits for when the time is over is a gap of at least that length."""
    num_tokens = 0

    async def before_token():
        nonlocal num_tokens
        num_tokens += 1
        await asyncio.sleep(0.005 if num_tokens < 200 and not has_long else 3600)

    has_long = []

    async def prefill(num_tokens):
        if num_tokens == 50:
            has_long.append(True)

    result, _ = measure(prefill=prefill, before_token=before_token)
    assert max(result.with_long.gaps_s) > 0.2
