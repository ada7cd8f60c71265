"""``GET /flowprefill/state`` and the page that shows it, ``GET /flowprefill``.

The state is protected as SGLang's admin routes are: with an admin key set it takes that, with an
API key only it takes that. The page is a constant file without a word about the server, and a
browser cannot send a key with an address that is typed in: it needs no key, like ``/health``, and
asks its reader for one.
"""

from collections.abc import Callable
from http import HTTPStatus
from importlib.resources import files
from typing import Any

import fastapi
from sglang.srt.utils.auth import AuthDecision, AuthLevel, auth_level

from sglang_flowprefill.api.state import PAGE_PATH, STATE_PATH
from sglang_flowprefill.errors import StateUnavailableError
from sglang_flowprefill.observe.state_socket import address_of_rank, ask_state

_NOT_KEPT = {"Cache-Control": "no-store"}
_PAGE_HEADERS = {
    **_NOT_KEPT,
    # The page runs what is written in it and talks to its own server, and nothing else.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def add_live_routes(app: fastapi.FastAPI, address: str) -> None:
    """Add both routes.

    Args:
        app: SGLang's application.
        address: Of the schedulers' ``StateServer``.
    """

    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def state(dp_rank: int = 0) -> fastapi.Response:
        """Return ``ServerState`` of the scheduler, or of one data-parallel rank's."""
        try:
            content = await ask_state(address_of_rank(address, dp_rank))
        except StateUnavailableError as error:
            return fastapi.responses.JSONResponse(
                {"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE, _NOT_KEPT
            )
        return fastapi.Response(content, headers=_NOT_KEPT, media_type="application/json")

    async def page() -> fastapi.Response:
        """Return the live page."""
        return fastapi.Response(page_text, headers=_PAGE_HEADERS, media_type="text/html")

    page_text = files("sglang_flowprefill.api").joinpath("live.html").read_text(encoding="utf-8")
    for path, route in ((STATE_PATH, state), (PAGE_PATH, page)):
        app.add_api_route(path, route, methods=["GET"])


def allow_page(
    original: Callable[..., AuthDecision], *, method: str, path: str, **kwargs: Any
) -> AuthDecision:
    """Let the page through without a key (AROUND hook of ``decide_request_auth``)."""
    if method == "GET" and path == PAGE_PATH:
        return AuthDecision(allowed=True)
    return original(method=method, path=path, **kwargs)
