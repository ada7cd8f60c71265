"""The head-of-line test tells a server that preempts from one that does not."""

import asyncio

import pytest
from fake_sglang import FakeSGLang

from bench import urgent
from bench.errors import ServerError
from bench.urgent import UrgentOptions, UrgentResult

OPTIONS = UrgentOptions(long_tokens=400, urgent_tokens=2, num_urgent=3, num_idle=3, num_solo=1)


@pytest.fixture(autouse=True)
def _long_prompt_is_surely_first(monkeypatch):
    # The usual 5 % of its solo TTFT is less than a connect takes here.
    monkeypatch.setattr(urgent, "_HEAD_START", 0.5)


def measure(make_prefill, **fake_options):
    """Run the test against a fake server with this prefill."""

    async def go():
        fake = FakeSGLang(prefill=make_prefill(), **fake_options)
        async with fake.running() as server:
            return await urgent.measure_urgent(server, OPTIONS)

    return asyncio.run(go())


def preempting():
    """Serve urgent prompts at once; the second long one ends after three of them."""
    num_long = num_overtaking = 0
    all_overtook = asyncio.Event()

    async def prefill(num_tokens):
        nonlocal num_long, num_overtaking
        if num_tokens == 400:
            num_long += 1
            if num_long == 2:
                await all_overtook.wait()
            await asyncio.sleep(0.03)
        elif num_long == 2:
            num_overtaking += 1
            if num_overtaking == 3:
                all_overtook.set()

    return prefill


def first_come_first_served():
    """Serve one prompt after the other."""
    device = asyncio.Lock()

    async def prefill(num_tokens):
        async with device:
            await asyncio.sleep(0.04 if num_tokens == 400 else 0.01)

    return prefill


def test_preempting_server_lets_urgent_prompts_overtake():
    """All urgent prompts are answered while the long prefill goes on."""
    result = measure(preempting)
    assert len(result.urgent_ttfts_s) == 3
    assert result.num_overtaking == 3


def test_first_come_first_served_makes_the_urgent_prompt_wait():
    """None overtakes, and how many were sent at all is reported."""
    result = measure(first_come_first_served)
    assert result.num_overtaking == 0
    assert result.figures()["urgent sent during long"] == len(result.urgent_ttfts_s)


def test_failed_request_stops_the_test():
    """On an idle server nothing may fail; a number made from failures would mean nothing."""
    with pytest.raises(ServerError, match="400 tokens failed"):
        measure(preempting, broken_lengths=frozenset({400}))


def test_ratios_compare_with_idle_and_with_the_work():
    """Slowdown is against the idle median, overhead against solo plus overtaking work."""
    result = UrgentResult(
        idle_ttfts_s=[0.1, 0.1, 0.2],
        solo_ttfts_s=[10.0],
        urgent_ttfts_s=[0.2, 0.2, 9.0],
        num_overtaking=2,
        long_ttft_s=10.2,
    )
    assert result.slowdown == pytest.approx(2.0)
    assert result.long_overhead == pytest.approx(1.0)
