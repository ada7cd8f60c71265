"""The one HTTP client of the bench: sends a streaming request and times its tokens.

All times are ``time.perf_counter`` seconds. Faults of the server or of the network do not raise in
``timed_generate``: they become the ``error`` of the timing, because in a replay they are a result.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import aiohttp

from bench.errors import ServerError
from bench.systems.engine import Endpoint, Engine, GenerateRequest, StreamError

# One streamed line repeats all text and ids generated so far; aiohttp's own limit is 64 KiB.
_MAX_LINE_BYTES = 4 << 20


@dataclass(slots=True)
class StreamTiming:
    """What happened to one request.

    Attributes:
        sent_s: Just before it was handed to the HTTP client.
        first_token_s: First chunk that carried a token; None if none came.
        finished_s: End of the stream, or the moment it failed.
        num_generated_tokens: As the server counted them.
        token_times_s: When each line of the stream came that brought new tokens.
        num_cached_tokens: Of the prompt, as the server counted them; None if it did not say.
        error: Why the request failed; None if it was served in full.
    """

    sent_s: float
    first_token_s: float | None = None
    finished_s: float | None = None
    num_generated_tokens: int = 0
    token_times_s: list[float] = field(default_factory=list)
    num_cached_tokens: int | None = None
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        """Seconds from send to first token, of a request without error."""
        assert self.first_token_s is not None, "a stream without a token has an error"
        return self.first_token_s - self.sent_s


@asynccontextmanager
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session fit for an open loop: no limit on connections, no timeout of its own.

    Every request has its own connection: a kept one that the server closes while it idles
    would show up as a failed request.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=_MAX_LINE_BYTES,
    ) as session:
        yield session


async def timed_generate(
    session: aiohttp.ClientSession, server: Endpoint, request: GenerateRequest, limit_s: float
) -> StreamTiming:
    """Send one request, read its stream to the end, and return the times.

    Args:
        session: From ``http_session``.
        server: Where to send it.
        request: What to send, encoded by the server's engine.
        limit_s: After this many seconds the request is given up as a timeout.
    """
    timing = StreamTiming(sent_s=perf_counter())
    url = server.url + request.path
    try:
        async with (
            asyncio.timeout(limit_s),
            session.post(url, data=request.body, headers=request.headers) as response,
        ):
            await _read_stream(response, server.engine, timing)
    except TimeoutError:
        timing.error = f"timeout after {limit_s:.1f} s"
    except (StreamError, aiohttp.ClientError, OSError, ValueError) as error:
        timing.error = f"{type(error).__name__}: {error}".removeprefix("StreamError: ")
    timing.finished_s = perf_counter()
    return timing


async def _read_stream(
    response: aiohttp.ClientResponse, engine: Engine, timing: StreamTiming
) -> None:
    if response.status != 200:
        raise StreamError(f"HTTP {response.status}: {(await response.text())[:300]}")
    async for line in response.content:
        now_s = perf_counter()
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        state = engine.read(json.loads(line.removeprefix(b"data: ")))
        if state.num_generated_tokens > timing.num_generated_tokens:
            timing.token_times_s.append(now_s)
        timing.num_generated_tokens = state.num_generated_tokens
        timing.num_cached_tokens = state.num_cached_tokens
        if timing.first_token_s is None and timing.num_generated_tokens > 0:
            timing.first_token_s = now_s
    if timing.first_token_s is None:
        raise StreamError("the stream ended without a token")


async def timed_prompt(
    session: aiohttp.ClientSession,
    server: Endpoint,
    prompt: Sequence[int],
    limit_s: float,
    *,
    num_output_tokens: int = 1,
    slo_ttft_s: float | None = None,
    slo_class: str | None = None,
) -> StreamTiming:
    """Send one prompt to a server that has to answer it, and return the times.

    Raises:
        ServerError: It failed.
    """
    request = server.engine.encode(
        prompt, num_output_tokens, slo_ttft_s=slo_ttft_s, slo_class=slo_class
    )
    timing = await timed_generate(session, server, request, limit_s)
    if timing.error is not None:
        raise ServerError(f"a prompt of {len(prompt)} tokens failed: {timing.error}")
    return timing


async def get_json(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """Fetch a JSON object.

    Raises:
        ServerError: The server does not answer with one.
    """
    try:
        async with asyncio.timeout(30), session.get(url) as response:
            response.raise_for_status()
            return dict(await response.json())
    except (TimeoutError, aiohttp.ClientError, ValueError, TypeError) as error:
        raise ServerError(f"{url} gave no JSON object: {type(error).__name__}: {error}") from error
