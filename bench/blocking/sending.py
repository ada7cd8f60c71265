"""Sends the prompts of one granularity to its server, and remembers when."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from bench.blocking.options import BlockingOptions
from bench.blocking.waits import Window
from bench.errors import UsageError
from bench.systems.client import http_session, timed_prompt
from bench.systems.engine import Endpoint
from bench.workloads.prompts import UniquePrompts

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
        solo: The long prompt alone, each from its send to its token.
        disturbed: The urgent prompts.
        flights: Those, each from its send to its token.
    """

    num_tokens: int
    solo: list[Window]
    disturbed: Window
    flights: list[Window]


@dataclass(frozen=True, slots=True)
class GranularityRun:
    """What was sent to the server of one granularity.

    Attributes:
        idle: Urgent prompts one by one on the idle server.
        lengths: One for each length.
        switch_solo: The prompt of the switch cost alone, each from its send to its token.
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
        server: Endpoint,
        options: BlockingOptions,
        on_answer: Callable[[], None],
    ) -> None:
        self._session = session
        self._server = server
        self._options = options
        self._prompts = UniquePrompts(options.seed)
        self._moments = random.Random(options.seed)
        self._on_answer = on_answer

    async def urgent(self) -> Window:
        """Send one urgent prompt and wait for its token; return its flight."""
        return await self._send(self._options.urgent_tokens, _URGENT_SLO_S)

    async def long(self, num_tokens: int) -> Window:
        """Send one long prompt and wait for its token; return its flight."""
        return await self._send(num_tokens, _LONG_SLO_S)

    async def disturbed(self, num_tokens: int, spread_s: float) -> list[Window]:
        """Send long prompts, and urgent ones at random moments; return the latter's flights."""
        flights: list[Window] = []
        while len(flights) < self._options.num_samples:
            long = asyncio.create_task(self.long(num_tokens))
            try:
                while len(flights) < self._options.num_samples:
                    await asyncio.sleep(self._moments.uniform(0.0, spread_s))
                    if long.done():
                        break
                    flights.append(await self.urgent())
                await long
            finally:
                long.cancel()
        return flights

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

    async def _send(self, num_tokens: int, slo_s: float) -> Window:
        prompt = self._prompts.draw(num_tokens)
        timing = await timed_prompt(self._session, self._server, prompt, _LIMIT_S, slo_ttft_s=slo_s)
        self._on_answer()
        return Window(timing.sent_s, timing.sent_s + timing.ttft_s)


async def measure_granularity(
    server: Endpoint, options: BlockingOptions, on_answer: Callable[[], None] = lambda: None
) -> GranularityRun:
    """Send everything to one server, warm and idle, and remember when.

    Raises:
        ServerError: A request failed.
    """
    async with http_session() as session:
        sender = _Sender(session, server, options, on_answer)
        start_s = time.monotonic()
        for _ in range(options.num_idle):
            await sender.urgent()
        idle = Window(start_s, time.monotonic())
        lengths = [await _measure_length(sender, n, options) for n in options.lengths]
        alone = [await sender.long(options.switch_tokens) for _ in range(options.num_solo)]
        head_start_s = _HEAD_START * min(flight.duration_s for flight in alone)
        switched = [
            await sender.switched(options.switch_tokens, head_start_s)
            for _ in range(options.num_switch_prompts)
        ]
    return GranularityRun(idle, lengths, alone, switched)


async def _measure_length(sender: _Sender, num_tokens: int, options: BlockingOptions) -> LengthRun:
    alone = [await sender.long(num_tokens) for _ in range(options.num_solo)]
    duration_s = min(flight.duration_s for flight in alone)
    # All samples together reach through a long prompt; each finds a short one still running.
    spread_s = max(options.spread_s, 2 * duration_s / options.num_samples)
    spread_s = min(spread_s, duration_s / 2)
    start_s = time.monotonic()
    flights = await sender.disturbed(num_tokens, spread_s)
    return LengthRun(num_tokens, alone, Window(start_s, time.monotonic()), flights)


def require_shared_clock() -> None:
    """Check that the client's times compare with the server's, which are monotonic.

    Raises:
        UsageError: This system has two clocks.
    """
    clocks = [time.get_clock_info(name).implementation for name in ("perf_counter", "monotonic")]
    if clocks[0] != clocks[1]:
        raise UsageError(f"blocking needs one clock for all processes; here are {clocks}")
