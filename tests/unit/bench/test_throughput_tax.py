"""Throughput is compared round by round, in an order that favours nobody."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from fake_sglang import FakeSGLang

from bench.blocking.tax import TaxOptions, TaxSample, measure_tax, summarise_tax
from bench.errors import ServerError

OPTIONS = TaxOptions(rounds=6, long_tokens=40, short_tokens=4, num_short=2)


def measure(**fakes):
    """Ask these fake servers in turn; return the samples."""

    async def go():
        async with AsyncExitStack() as servers:
            urls = {
                name: await servers.enter_async_context(fake.running())
                for name, fake in fakes.items()
            }
            return await measure_tax(urls, OPTIONS)

    return asyncio.run(go())


def test_all_systems_get_the_same_prompts_in_changing_order():
    """Each round asks everybody for the same work; who is first changes."""
    fakes = {"off": FakeSGLang(), "tiled": FakeSGLang()}
    samples = measure(**fakes)
    assert fakes["off"].bodies == fakes["tiled"].bodies
    assert len({tuple(body["input_ids"]) for body in fakes["off"].bodies}) == 6 * 3
    first = [sample.system for sample in samples[::2]]
    assert set(first) == {"off", "tiled"}
    blocks = [(s.num_tokens, s.num_prompts) for s in samples if s.system == "off"]
    assert blocks == [(40, 1), (4, 2)] * 6


def test_failed_prompt_stops_the_measurement():
    """The error names the length."""
    with pytest.raises(ServerError, match="40 tokens failed"):
        measure(off=FakeSGLang(broken_lengths=frozenset({40})))


def test_tax_is_the_median_of_ratios_within_rounds():
    """A round in which the machine was slow for everybody changes nothing."""
    seconds = {"off": [1.0, 2.0, 10.0], "tiled": [1.1, 2.0, 12.0]}
    samples = [
        TaxSample(system, index, 64, 10, value)
        for system, values in seconds.items()
        for index, value in enumerate(values)
    ]
    off, tiled = summarise_tax(samples, "off")
    assert (off.system, off.ratio, off.ratio_min, off.ratio_max) == ("off", 1.0, 1.0, 1.0)
    assert tiled.ratio == pytest.approx(1.1)
    assert (tiled.ratio_min, tiled.ratio_max) == (pytest.approx(1.0), pytest.approx(1.2))
    assert off.tokens_per_s == pytest.approx(640 / 2.0)
    assert (tiled.tokens_per_s_min, tiled.tokens_per_s_max) == (
        pytest.approx(640 / 12.0),
        pytest.approx(640 / 1.1),
    )
