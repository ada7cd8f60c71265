"""Throughput is compared round by round, in an order that favours nobody."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from fake_sglang import FakeSGLang

from bench.blocking.tax import Block, TaxOptions, measure_tax
from bench.errors import ServerError

OPTIONS = TaxOptions(rounds=6, long_tokens=40, short_tokens=4, num_short=2)


def measure(**fakes):
    """Ask these fake servers in turn; return the samples."""

    async def go():
        async with AsyncExitStack() as servers:
            endpoints = {
                name: await servers.enter_async_context(fake.running())
                for name, fake in fakes.items()
            }
            return await measure_tax(endpoints, OPTIONS)

    return asyncio.run(go())


def test_all_systems_get_the_same_prompts_in_changing_order():
    """Each round asks everybody for the same work; who is first changes."""
    fakes = {"off": FakeSGLang(), "tiled": FakeSGLang()}
    samples = measure(**fakes)
    assert fakes["off"].bodies == fakes["tiled"].bodies
    assert len({tuple(body["input_ids"]) for body in fakes["off"].bodies}) == 6 * 3
    first = [sample.system for sample in samples[::2]]
    assert set(first) == {"off", "tiled"}
    blocks = [s.case for s in samples if s.system == "off"]
    assert blocks == [Block(40, 1), Block(4, 2)] * 6


def test_failed_prompt_stops_the_measurement():
    """The error names the length."""
    with pytest.raises(ServerError, match="40 tokens failed"):
        measure(off=FakeSGLang(broken_lengths=frozenset({40})))
