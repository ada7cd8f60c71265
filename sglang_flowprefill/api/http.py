"""ASGI middleware: arrival stamped at the door, bad SLOs turned away with HTTP 400.

It runs before SGLang parses the request, so that the stamp includes parsing and tokenizing, and
so that a streaming request with a bad SLO gets a status code rather than an error event inside a
stream that already said 200.
"""

import json
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from sglang_flowprefill.api.slo import CLASS_HEADER, TTFT_SLO_HEADER, HeaderSlo, SloResolver
from sglang_flowprefill.errors import SloError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY = "sglang_flowprefill.header_slo"
"""Where the ``HeaderSlo`` of a request waits for the tokenizer hook."""

_METHODS = frozenset({"POST", "PUT"})  # SGLang serves /generate under both
_BODY_ROUTES = frozenset({"/generate", "/v1/completions", "/v1/chat/completions"})


class SloMiddleware:
    """Validates the SLO of every POST or PUT and leaves its ``HeaderSlo`` in the scope.

    Args:
        app: The wrapped application.
        resolver: The server's rules.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self, app: App, resolver: SloResolver, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._app = app
        self._resolver = resolver
        self._wall_clock = wall_clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        arrival_unix_s = self._wall_clock()
        try:
            header = _read_headers(scope, arrival_unix_s)
            scope[SCOPE_KEY] = header
            if scope["path"] in _BODY_ROUTES and not _is_compressed(scope):
                body, receive = await _read_body(receive)
                for custom_params in _custom_params(body):
                    self._resolver.resolve(header, custom_params)
            self._resolver.resolve(header, None)
        except SloError as error:
            await _send_bad_request(send, error)
            return
        await self._app(scope, receive, send)


def _read_headers(scope: Scope, arrival_unix_s: float) -> HeaderSlo:
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name not in (TTFT_SLO_HEADER, CLASS_HEADER):
            continue
        if name in found:
            raise SloError(name, "was sent more than once")
        found[name] = raw_value.decode("latin-1").strip()
    return HeaderSlo(arrival_unix_s, found.get(TTFT_SLO_HEADER), found.get(CLASS_HEADER))


def _is_compressed(scope: Scope) -> bool:
    """A compressed body is validated later, by the tokenizer hook, once it is decoded."""
    return any(name.lower() == b"content-encoding" for name, _ in scope["headers"])


async def _read_body(receive: Receive) -> tuple[bytes, Receive]:
    """Read the whole body; return it with a ``receive`` that replays it."""
    messages: list[Message] = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    body = b"".join(message.get("body", b"") for message in messages)
    pending = iter(messages)

    async def replay() -> Message:
        message = next(pending, None)
        return await receive() if message is None else message

    return body, replay


def _custom_params(body: bytes) -> Iterator[Any]:
    """Yield every ``custom_params`` of a generate or OpenAI body.

    Most bodies have none, and long prompts make parsing costly: look at the bytes first.
    """
    if b"custom_params" not in body:
        return
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return  # SGLang's own parser words that error
    if not isinstance(parsed, dict):
        return
    sampling_params = parsed.get("sampling_params")
    for holder in [
        parsed,
        *(sampling_params if isinstance(sampling_params, list) else [sampling_params]),
    ]:
        if isinstance(holder, dict) and "custom_params" in holder:
            yield holder["custom_params"]


async def _send_bad_request(send: Send, error: SloError) -> None:
    content = {
        "error": {
            "message": str(error),
            "type": "BadRequestError",
            "param": error.field,
            "code": 400,
        }
    }
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
