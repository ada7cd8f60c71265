"""The one HTTP client of the bench: sends a streaming ``/generate`` and times its tokens.

All times are ``time.perf_counter`` seconds. Faults of the server or of the network never raise
here: they become the ``error`` of the timing, because in a replay they are a result.
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

# One streamed line repeats all text and ids generated so far; aiohttp's own limit is 64 KiB.
_MAX_LINE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A request ready to send, encoded ahead of time so that sending costs no CPU.

    Attributes:
        body: JSON of the ``/generate`` request.
        headers: Extra HTTP headers.
    """

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class StreamTiming:
    """What happened to one request.

    Attributes:
        sent_s: Just before it was handed to the HTTP client.
        first_token_s: First chunk that carried a token; None if none came.
        finished_s: End of the stream, or the moment it failed.
        num_generated_tokens: As the server counted them.
        error: Why the request failed; None if it was served in full.
    """

    sent_s: float
    first_token_s: float | None = None
    finished_s: float | None = None
    num_generated_tokens: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """Seconds from send to first token, None if none came."""
        return None if self.first_token_s is None else self.first_token_s - self.sent_s


class _StreamError(Exception):
    """The server answered, but not with the tokens asked for."""


def encode_request(
    prompt: Sequence[int],
    num_output_tokens: int,
    *,
    slo_ttft_s: float | None = None,
    slo_class: str | None = None,
) -> GenerateRequest:
    """Encode a greedy request for exactly ``num_output_tokens`` tokens.

    Args:
        prompt: Token ids.
        num_output_tokens: Tokens to generate; end-of-sequence is ignored.
        slo_ttft_s: TTFT objective to tell the server, None to tell it none.
        slo_class: Class name to tell the server.
    """
    body = {
        "input_ids": list(prompt),
        "stream": True,
        "sampling_params": {
            "max_new_tokens": num_output_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
        },
    }
    headers = {"content-type": "application/json"}
    if slo_ttft_s is not None:
        headers["x-slo-ttft-ms"] = str(max(1, round(slo_ttft_s * 1000)))
    if slo_class is not None:
        headers["x-slo-class"] = slo_class
    return GenerateRequest(json.dumps(body).encode(), headers)


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
    session: aiohttp.ClientSession, url: str, request: GenerateRequest, limit_s: float
) -> StreamTiming:
    """Send one request, read its stream to the end, and return the times.

    Args:
        session: From ``http_session``.
        url: Base address of the server.
        request: What to send.
        limit_s: After this many seconds the request is given up as a timeout.
    """
    timing = StreamTiming(sent_s=perf_counter())
    try:
        async with (
            asyncio.timeout(limit_s),
            session.post(f"{url}/generate", data=request.body, headers=request.headers) as response,
        ):
            await _read_stream(response, timing)
    except TimeoutError:
        timing.error = f"timeout after {limit_s:.1f} s"
    except (_StreamError, aiohttp.ClientError, OSError, ValueError) as error:
        timing.error = f"{type(error).__name__}: {error}".removeprefix("_StreamError: ")
    timing.finished_s = perf_counter()
    return timing


async def _read_stream(response: aiohttp.ClientResponse, timing: StreamTiming) -> None:
    if response.status != 200:
        raise _StreamError(f"HTTP {response.status}: {(await response.text())[:300]}")
    async for line in response.content:
        now_s = perf_counter()
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        timing.num_generated_tokens = _num_tokens_of(json.loads(line.removeprefix(b"data: ")))
        if timing.first_token_s is None and timing.num_generated_tokens > 0:
            timing.first_token_s = now_s
    if timing.first_token_s is None:
        raise _StreamError("the stream ended without a token")


def _num_tokens_of(chunk: dict[str, Any]) -> int:
    """Return how many tokens were generated up to this chunk.

    Raises:
        _StreamError: The chunk reports a failure; SGLang streams those with HTTP status 200.
    """
    if "error" in chunk:
        raise _StreamError(f"server error: {chunk['error']}")
    meta = chunk.get("meta_info", {})
    reason = meta.get("finish_reason") or {}
    if reason.get("type") == "abort":
        raise _StreamError(f"aborted by the server: {reason.get('message', '')}")
    return int(meta.get("completion_tokens", 0))


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
