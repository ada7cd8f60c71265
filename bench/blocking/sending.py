"""Sends the prompts of one granularity to its server, and remembers when."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from bench.blocking.options import BlockingOptions
from bench.blocking.waits import Window
from bench.client import StreamTiming, encode_request, http_session, timed_generate
from bench.errors import ServerError, UsageError
from bench.prompts import UniquePrompts

# Far apart, so that urgent prompts go first, and generous, so that nothing is ever doomed.
_URGENT_SLO_S = 60.0
_LONG_SLO_S = 3600.0
_LIMIT_S = 1800.0
# Share of its solo TTFT after which the long prompt is taken to be in its prefill.
_HEAD_START = 0.1


@dataclass(frozen=True, slots=True)
class LengthRun:
    """What was sent for one length of the running prompt.

    Attributes:
        num_tokens: The length.
        solo: The long prompt alone, one window for each.
        solo_ttfts_s: Its TTFTs.
        disturbed: The urgent prompts.
        sends_s: When those were sent.
    """

    num_tokens: int
    solo: list[Window]
    solo_ttfts_s: list[float]
    disturbed: Window
    sends_s: list[float]


@dataclass(frozen=True, slots=True)
class GranularityRun:
    """What was sent to the server of one granularity.

    Attributes:
        idle: Urgent prompts one by one on the idle server.
        lengths: One for each length.
        switch_solo: The prompt of the switch cost alone.
        switched: The same with urgent ones one by one.
    """

    idle: Window
    lengths: list[LengthRun]
    switch_solo: list[Window]
    switched: list[Window]


class _Sender:
    """Sends urgent and long prompts, no two alike."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        options: BlockingOptions,
        on_answer: Callable[[], None],
    ) -> None:
        self._session = session
        self._url = url
        self._options = options
        self._prompts = UniquePrompts(options.seed)
        self._moments = random.Random(options.seed)
        self._on_answer = on_answer

    async def urgent(self) -> StreamTiming:
        """Send one urgent prompt and wait for its token."""
        return await self._send(self._options.urgent_tokens, _URGENT_SLO_S)

    async def long(self, num_tokens: int) -> StreamTiming:
        """Send one long prompt and wait for its token."""
        return await self._send(num_tokens, _LONG_SLO_S)

    async def alone(self, num_tokens: int) -> tuple[Window, float]:
        """Send a long prompt to the idle server; return when that was, and its TTFT."""
        start_s = time.monotonic()
        timing = await self.long(num_tokens)
        assert timing.ttft_s is not None, "a request without a token is an error"
        return Window(start_s, time.monotonic()), timing.ttft_s

    async def disturbed(self, num_tokens: int, spread_s: float) -> list[float]:
        """Send long prompts, and urgent ones at random moments; return when the latter were."""
        sends_s: list[float] = []
        while len(sends_s) < self._options.num_samples:
            long = asyncio.create_task(self.long(num_tokens))
            try:
                while len(sends_s) < self._options.num_samples:
                    await asyncio.sleep(self._moments.uniform(0.0, spread_s))
                    if long.done():
                        break
                    sends_s.append((await self.urgent()).sent_s)
                await long
            finally:
                long.cancel()
        return sends_s

    async def switched(self, num_tokens: int, head_start_s: float) -> Window:
        """Send one long prompt, and urgent ones one by one as long as it runs."""
        start_s = time.monotonic()
        long = asyncio.create_task(self.long(num_tokens))
        try:
            await asyncio.sleep(head_start_s)
            for _ in range(self._options.num_switch):
                if not long.done():
                    await self.urgent()
            await long
        finally:
            long.cancel()
        return Window(start_s, time.monotonic())

    async def _send(self, num_tokens: int, slo_s: float) -> StreamTiming:
        request = encode_request(
            self._prompts.draw(num_tokens), num_output_tokens=1, slo_ttft_s=slo_s
        )
        timing = await timed_generate(self._session, self._url, request, _LIMIT_S)
        if timing.error is not None:
            raise ServerError(f"a prompt of {num_tokens} tokens failed: {timing.error}")
        self._on_answer()
        return timing


async def measure_granularity(
    url: str, options: BlockingOptions, on_answer: Callable[[], None] = lambda: None
) -> GranularityRun:
    """Send everything to one server, warm and idle, and remember when.

    Raises:
        ServerError: A request failed.
    """
    async with http_session() as session:
        sender = _Sender(session, url, options, on_answer)
        start_s = time.monotonic()
        for _ in range(options.num_idle):
            await sender.urgent()
        idle = Window(start_s, time.monotonic())
        lengths = [await _measure_length(sender, n, options) for n in options.lengths]
        alone = [await sender.alone(options.switch_tokens) for _ in range(options.num_solo)]
        head_start_s = _HEAD_START * min(ttft_s for _, ttft_s in alone)
        switched = [
            await sender.switched(options.switch_tokens, head_start_s)
            for _ in range(options.num_switch_prompts)
        ]
    return GranularityRun(idle, lengths, [window for window, _ in alone], switched)


async def _measure_length(sender: _Sender, num_tokens: int, options: BlockingOptions) -> LengthRun:
    alone = [await sender.alone(num_tokens) for _ in range(options.num_solo)]
    ttfts_s = [ttft_s for _, ttft_s in alone]
    # Within half of a short prompt's time, so that one that is sent finds it running.
    spread_s = min(options.spread_s, min(ttfts_s) / 2)
    start_s = time.monotonic()
    sends_s = await sender.disturbed(num_tokens, spread_s)
    disturbed = Window(start_s, time.monotonic())
    return LengthRun(num_tokens, [window for window, _ in alone], ttfts_s, disturbed, sends_s)


def require_shared_clock() -> None:
    """Check that the client's times compare with the server's, which are monotonic.

    Raises:
        UsageError: This system has two clocks.
    """
    clocks = [time.get_clock_info(name).implementation for name in ("perf_counter", "monotonic")]
    if clocks[0] != clocks[1]:
        raise UsageError(f"blocking needs one clock for all processes; here are {clocks}")
