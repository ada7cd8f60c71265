"""One prompt on an idle server: the time to its first token is the time of its prefill."""

from collections.abc import Sequence

import aiohttp

from bench.systems.client import StreamTiming, timed_prompt
from bench.systems.engine import Endpoint

_LIMIT_S = 900.0
_SLO_S = 3600.0  # never doomed, whatever the machine


async def prefill_timing(
    session: aiohttp.ClientSession, server: Endpoint, prompt: Sequence[int]
) -> StreamTiming:
    """Send one prompt, for one token, and wait for it.

    Raises:
        ServerError: It failed.
    """
    return await timed_prompt(session, server, prompt, _LIMIT_S, slo_ttft_s=_SLO_S)
