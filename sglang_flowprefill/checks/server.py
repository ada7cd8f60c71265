"""Does a running server serve with FlowPrefill?"""

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from sglang_flowprefill.checks.finding import Finding, fail, ok

_TIMEOUT_S = 10.0


def check_server(url: str, api_key: str | None = None) -> Finding:
    """Ask ``GET /server_info`` of a server for what FlowPrefill says of itself.

    Args:
        url: Of the server, such as ``http://127.0.0.1:30000``.
        api_key: Sent as the bearer token.
    """
    if not url.startswith(("http://", "https://")):
        return fail("server", f"{url!r} is no address", "give --url as http://HOST:PORT")
    try:
        info = _server_info(url.rstrip("/"), api_key)
        states = [state.get("flowprefill") for state in info["internal_states"]]
    except HTTPError as error:
        advice = "give the server's key as --api-key" if error.code in {401, 403} else "see its log"
        return fail("server", f"{url} answers {error.code} to GET /server_info", advice)
    except (OSError, HTTPException) as error:
        return fail("server", f"no answer from {url}: {error}", "is it up, and is this its port?")
    except (ValueError, LookupError, TypeError, AttributeError):
        return fail("server", f"{url} is no SGLang server", "is this its port?")
    return _describe(url, states)


def _server_info(url: str, api_key: str | None) -> Any:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    request = Request(f"{url}/server_info", headers=headers)  # noqa: S310 (http only, see above)
    with urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
        return json.load(answer)


def _describe(url: str, states: list[Any]) -> Finding:
    if not states or not all(states):
        return fail(
            "server",
            f"{url} is a stock SGLang server",
            "start it by python -m sglang_flowprefill.launch_server, with the same flags",
        )
    state = states[0]
    return ok(
        "server",
        f"{url} runs FlowPrefill: policy {state['policy']}, {state['num_rounds']} rounds, "
        f"{state['num_prefills']} prefills, {state['num_preemptions']} preemptions",
    )
