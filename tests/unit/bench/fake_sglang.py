"""A server that answers like SGLang, with timing that a test decides."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import takewhile

from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.systems.engine import Endpoint
from bench.systems.sglang import STOCK

SERVER_INFO = {"version": "0.5.23", "device": "cpu", "model_path": "/srv/models/tiny", "x": 1}


@dataclass
class FakeSGLang:
    """Serves ``/generate``, ``/health`` and ``/server_info``.

    Attributes:
        prefill: Awaited before the first token with the prompt length.
        broken_lengths: Prompts of these lengths get an error chunk instead of tokens.
        before_token: Awaited before every later token.
        info: What ``/server_info`` says, made when it is asked.
        caches: Whether it reports the longest prefix that an earlier prompt shares as cached.
        bodies: Every request body received, in order.
        headers: Its headers.
    """

    prefill: Callable[[int], Awaitable[None]] = lambda _num_tokens: asyncio.sleep(0)
    broken_lengths: frozenset[int] = frozenset()
    before_token: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
    info: Callable[[], dict] = lambda: SERVER_INFO
    caches: bool = False
    bodies: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Stream the tokens asked for, or an error chunk."""
        body = await request.json()
        num_cached_tokens = self._num_cached_tokens(body["input_ids"])
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        num_input_tokens = len(body["input_ids"])
        await self.prefill(num_input_tokens)
        if num_input_tokens in self.broken_lengths:
            await _send(response, {"error": {"message": "no such prompt"}})
        else:
            num_output_tokens = body["sampling_params"]["max_new_tokens"]
            for i in range(num_output_tokens):
                if i:
                    await self.before_token()
                finish = {"type": "length"} if i + 1 == num_output_tokens else None
                meta = {"completion_tokens": i + 1, "finish_reason": finish}
                meta["cached_tokens"] = num_cached_tokens
                await _send(response, {"text": "", "meta_info": meta})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _info(self, _request: web.Request) -> web.Response:
        return web.json_response(self.info())

    def _num_cached_tokens(self, prompt: list[int]) -> int:
        if not self.caches:
            return 0
        earlier = [body["input_ids"] for body in self.bodies]
        return max((_num_equal(prompt, other) for other in earlier), default=0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Endpoint]:
        """Serve on a free port and give the address."""
        app = web.Application()
        app.router.add_post("/generate", self.generate)
        app.router.add_get("/health", _ok)
        app.router.add_get("/server_info", self._info)
        server = TestServer(app)
        await server.start_server()
        try:
            yield Endpoint(str(server.make_url("")).rstrip("/"), STOCK)
        finally:
            await server.close()


def _num_equal(prompt: list[int], other: list[int]) -> int:
    """Return the length of the longest prefix that two prompts share."""
    pairs = zip(prompt, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


async def _send(response: web.StreamResponse, chunk: dict) -> None:
    await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


async def _ok(_request: web.Request) -> web.Response:
    return web.Response()
