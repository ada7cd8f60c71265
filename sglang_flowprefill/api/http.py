"""ASGI middleware: bad SLOs turned away with HTTP 400, arrival stamped when the body is in.

It runs before SGLang parses the request, so that the stamp includes parsing and tokenizing, and
so that a streaming request with a bad SLO gets a status code rather than an error event inside a
stream that already said 200. It stands inside SGLang's own CORS and API keys. A caller who sends
its body slowly does not age meanwhile. What the scheduler refuses later is answered by
``answer.py``.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import msgspec

from sglang_flowprefill.api.answer import Message, Send, replaceable_answer, send_error
from sglang_flowprefill.api.body import may_state_slo, per_prompt_params, stated_in
from sglang_flowprefill.api.slo import HeaderSlo, SloResolver, read_headers
from sglang_flowprefill.errors import SloError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY = "sglang_flowprefill.header_slo"
"""Where the ``HeaderSlo`` of a request waits for the tokenizer hook."""

_METHODS = frozenset({"POST", "PUT"})  # SGLang serves /generate under both
_BODY_ROUTES = frozenset(
    {
        "/generate",
        "/encode",
        "/classify",
        "/invocations",
        "/vertex_generate",
        "/api/chat",
        "/api/generate",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/v1/classify",
        "/v1/rerank",
        "/v1/score",
    }
)
"""Routes whose requests are prefilled."""


class SloMiddleware:
    """Validates the SLO of every POST or PUT and leaves its ``HeaderSlo`` in the scope.

    Args:
        app: The wrapped application.
        resolver: The server's rules.
        wall_clock: Seconds since the epoch.
        can_reject: True if the scheduler may refuse requests. The head of an answer then comes
            with its first byte of body, which for a streaming ``/generate`` is its first token.
    """

    def __init__(
        self,
        app: App,
        resolver: SloResolver,
        wall_clock: Callable[[], float] = time.time,
        *,
        can_reject: bool = False,
    ) -> None:
        self._app = app
        self._resolver = resolver
        self._wall_clock = wall_clock
        self._can_reject = can_reject
        self._matched = resolver.classes.matched_headers
        self._matches_models = resolver.classes.matches_models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        try:
            receive = await self._validate(scope, receive)
        except SloError as error:
            status = HTTPStatus.BAD_REQUEST
            await send_error(send, status, str(error), "BadRequestError", param=error.field)
            return
        if not self._can_reject:
            await self._app(scope, receive, send)
            return
        async with replaceable_answer(send) as answer:
            await self._app(scope, receive, answer.send)

    async def _validate(self, scope: Scope, receive: Receive) -> Receive:
        """Leave the ``HeaderSlo`` in the scope; return a ``receive`` with everything still in it.

        Raises:
            SloError: As ``SloResolver.resolve``.
        """
        body: Any = None
        arrival_unix_s = None
        if scope["path"] in _BODY_ROUTES and not _is_compressed(scope):
            raw_body, receive = await _read_body(receive)
            arrival_unix_s = self._wall_clock()
            body = self._parse(raw_body)
        header = replace(
            read_headers(scope["headers"], self._matched),
            arrival_unix_s=arrival_unix_s,
            model=_model_of(body) if self._matches_models else None,
            from_body=stated_in(body),
        )
        for custom_params in per_prompt_params(body):
            self._resolver.resolve(header, custom_params)
        self._resolver.resolve(header, None)
        scope[SCOPE_KEY] = header
        return receive

    def _parse(self, raw_body: bytes) -> Any:
        """Parse a body, if anything in it may matter; None otherwise.

        Most bodies have nothing, and long prompts make parsing costly: look at the bytes first.
        """
        if may_state_slo(raw_body) or (self._matches_models and b"model" in raw_body):
            try:
                return msgspec.json.decode(raw_body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # SGLang's own parser words that error
        return None


def take_header(scope: Scope) -> HeaderSlo | None:
    """Return what was read of an HTTP request; its arrival counts for its first prefill only.

    Later ones, of a conversation with tools inside one request, arrive when they are made.
    """
    header: HeaderSlo | None = scope.get(SCOPE_KEY)
    if header is not None and header.arrival_unix_s is not None:
        scope[SCOPE_KEY] = replace(header, arrival_unix_s=None)
    return header


def _model_of(body: Any) -> str | None:
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None


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
