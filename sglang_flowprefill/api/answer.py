"""The answer to one request, which a refusal may replace until its body begins.

Whether a request is refused for overload is known late: the scheduler decides, after SGLang has
begun to answer a streaming ``/generate`` with status 200. So the head of every answer is held back
until the first byte of its body, and a refusal that is reported before then replaces the answer.
All routes are treated alike, streaming or not, whatever SGLang itself makes of an abort.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from sglang_flowprefill.api.overload import Rejection, rejection_in

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

_current: ContextVar["ReplaceableAnswer | None"] = ContextVar("flowprefill_answer", default=None)
"""The answer that is being made in this context. Not in the ASGI scope, because the hook that
learns of a refusal sees no request. Tasks that serve the same request inherit its context."""


@asynccontextmanager
async def replaceable_answer(send: Send) -> AsyncIterator["ReplaceableAnswer"]:
    """Within the block, ``report_abort`` reaches the answer that is sent through this one.

    Args:
        send: Where it goes.
    """
    answer = ReplaceableAnswer(send)
    token = _current.set(answer)
    try:
        yield answer
    finally:
        _current.reset(token)
    await answer.release()


def report_abort(finish_reason: Any) -> None:
    """Turn the answer that is being made in this context into a refusal, if that is the reason.

    Without effect outside a request, for other reasons, and once a part of the answer's body has
    been sent.

    Args:
        finish_reason: Of an aborted request, as SGLang reports it.
    """
    answer, rejection = _current.get(), rejection_in(finish_reason)
    if answer is not None and rejection is not None:
        answer.rejection = rejection


class ReplaceableAnswer:
    """An answer that is held back, or let through, or replaced.

    Args:
        send: Where it goes.

    Attributes:
        rejection: What replaces it.
    """

    def __init__(self, send: Send) -> None:
        self.rejection: Rejection | None = None
        self._send = send
        self._head: Message | None = None
        self._is_under_way = False
        self._is_replaced = False

    async def send(self, message: Message) -> None:
        """Send, hold back or drop one message of the application."""
        if self._is_replaced:
            return  # the server has closed the exchange and tells the application so
        if self._is_under_way:
            await self._send(message)
        elif self.rejection is not None:
            self._is_replaced = True
            await _send_rejection(self._send, self.rejection, self._head or message)
        elif message["type"] == "http.response.start":
            self._head = message
        else:
            await self.release()
            await self._send(message)

    async def release(self) -> None:
        """Send what is held back."""
        head, self._head = self._head, None
        if head is not None and not self._is_replaced:
            self._is_under_way = True
            await self._send(head)


async def _send_rejection(send: Send, rejection: Rejection, head: Message) -> None:
    """Answer with a rejection; keep those headers of the first answer that are not its body's."""
    headers = [
        (name, value)
        for name, value in head.get("headers", ())
        if not name.lower().startswith((b"content-", b"transfer-"))
    ]
    if rejection.retry_after_s is not None:
        headers.append((b"retry-after", str(rejection.retry_after_s).encode()))
    await send_error(
        send, rejection.status, rejection.message, rejection.error_type, headers=headers
    )


async def send_error(
    send: Send,
    status: HTTPStatus,
    message: str,
    error_type: str,
    *,
    param: str | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send an error in the shape of OpenAI's."""
    error = {"message": message, "type": error_type, "param": param, "code": status.value}
    body = json.dumps({"error": error}).encode()
    own_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    start = {
        "type": "http.response.start",
        "status": status.value,
        "headers": [*headers, *own_headers],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
