"""ASGI middleware: arrival stamped at the door, bad SLOs turned away with HTTP 400.

It runs before SGLang parses the request, so that the stamp includes parsing and tokenizing, and
so that a streaming request with a bad SLO gets a status code rather than an error event inside a
stream that already said 200. What the scheduler refuses later is answered by ``answer.py``.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import msgspec

from sglang_flowprefill.api.answer import Message, Send, replaceable_answer, send_error
from sglang_flowprefill.api.slo import (
    CLASS_HEADER,
    SLO_HEADERS,
    SLO_KEYS,
    TPOT_SLO_HEADER,
    TTFT_SLO_HEADER,
    HeaderSlo,
    SloResolver,
    with_own_fields,
)
from sglang_flowprefill.errors import SloError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY = "sglang_flowprefill.header_slo"
"""Where the ``HeaderSlo`` of a request waits for the tokenizer hook."""

_METHODS = frozenset({"POST", "PUT"})  # SGLang serves /generate under both
_BODY_ROUTES = frozenset({"/generate", "/v1/completions", "/v1/chat/completions"})
_OWN_FIELD_ROUTES = frozenset({"/v1/responses"})


class SloMiddleware:
    """Validates the SLO of every POST or PUT and leaves its ``HeaderSlo`` in the scope.

    Args:
        app: The wrapped application.
        resolver: The server's rules.
        wall_clock: Seconds since the epoch.
        can_reject: True if the scheduler may refuse requests. The head of an answer then comes
            with its first byte of body, which for a streaming ``/generate`` is its first token.
        has_own_fields: True if SGLang's requests have SLO fields, which it otherwise drops.
    """

    def __init__(
        self,
        app: App,
        resolver: SloResolver,
        wall_clock: Callable[[], float] = time.time,
        *,
        can_reject: bool = False,
        has_own_fields: bool = False,
    ) -> None:
        self._app = app
        self._resolver = resolver
        self._wall_clock = wall_clock
        self._can_reject = can_reject
        self._headers = SLO_HEADERS | resolver.classes.matched_headers
        self._field_names = [b"custom_params"]
        if resolver.classes.matches_models:
            self._field_names.append(b"model")
        self._has_own_fields = has_own_fields
        self._body_routes = _BODY_ROUTES
        if has_own_fields:
            self._field_names += [name.encode() for name in SLO_KEYS]
            self._body_routes |= _OWN_FIELD_ROUTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        try:
            receive = await self._validate(scope, receive, self._wall_clock())
        except SloError as error:
            status = HTTPStatus.BAD_REQUEST
            await send_error(send, status, str(error), "BadRequestError", param=error.field)
            return
        if not self._can_reject:
            await self._app(scope, receive, send)
            return
        async with replaceable_answer(send) as answer:
            await self._app(scope, receive, answer.send)

    async def _validate(self, scope: Scope, receive: Receive, arrival_unix_s: float) -> Receive:
        """Leave the ``HeaderSlo`` in the scope; return a ``receive`` with everything still in it.

        Raises:
            SloError: As ``SloResolver.resolve``.
        """
        header = self._read_headers(scope, arrival_unix_s)
        if scope["path"] in self._body_routes and not _is_compressed(scope):
            raw_body, receive = await _read_body(receive)
            body = self._parse(raw_body)
            header = replace(header, model=body.model if isinstance(body.model, str) else None)
            own_fields = body.own_fields() if self._has_own_fields else {}
            for custom_params in body.all_custom_params():
                self._resolver.resolve(header, with_own_fields(custom_params, own_fields))
        self._resolver.resolve(header, None)
        scope[SCOPE_KEY] = header
        return receive

    def _read_headers(self, scope: Scope, arrival_unix_s: float) -> HeaderSlo:
        found: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name = raw_name.decode("latin-1").lower()
            if name not in self._headers:
                continue
            value = raw_value.decode("latin-1").strip()
            if name not in found:
                found[name] = value
            elif name in SLO_HEADERS:
                raise SloError(name, "was sent more than once")
            else:
                found[name] += ", " + value  # what repeating a header means in HTTP
        return HeaderSlo(
            arrival_unix_s,
            found.pop(TTFT_SLO_HEADER, None),
            found.pop(CLASS_HEADER, None),
            found.pop(TPOT_SLO_HEADER, None),
            found,
        )

    def _parse(self, raw_body: bytes) -> "_Body":
        """Parse what matters of a body, if anything in it may.

        Most bodies have nothing, and long prompts make parsing costly: look at the bytes first.
        """
        if any(name in raw_body for name in self._field_names):
            try:
                return msgspec.json.decode(raw_body, type=_Body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # SGLang's own parser words that error
        return _NOTHING_OF_OURS


class _Body(msgspec.Struct):
    """What matters of a generate or OpenAI body; the rest is skipped, not built."""

    custom_params: Any = None
    sampling_params: Any = None
    model: Any = None
    ttft_slo_ms: Any = None
    tpot_slo_ms: Any = None
    slo_class: Any = None

    def own_fields(self) -> dict[str, Any]:
        """Return the SLO fields of the request itself, None for those that it lacks."""
        return {name: getattr(self, name) for name in SLO_KEYS}

    def all_custom_params(self) -> Iterator[Any]:
        """Yield every ``custom_params``: OpenAI's, or those of each prompt of ``/generate``."""
        yield self.custom_params
        several = self.sampling_params
        for params in several if isinstance(several, list) else [several]:
            if isinstance(params, dict):
                yield params.get("custom_params")


_NOTHING_OF_OURS = _Body()


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
