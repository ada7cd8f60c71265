"""Hooks of the process that speaks HTTP: arrival stamps and SLOs, validated before tokenizing."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

from sglang.srt.managers.io_struct import GenerateReqInput

from sglang_flowprefill.adapter.flags import config_of
from sglang_flowprefill.api.http import SCOPE_KEY, SloMiddleware
from sglang_flowprefill.api.slo import HeaderSlo, SloResolver, load_slo_classes


@cache
def _resolver(slo_config: str | None, default_ttft_slo_ms: float) -> SloResolver:
    return SloResolver(load_slo_classes(slo_config, default_ttft_slo_ms))


def resolver_of(record: Any) -> SloResolver:
    """Return the SLO rules of a server.

    Raises:
        ConfigError: The class file is wrong.
    """
    config = config_of(record)
    return _resolver(config.slo_config, config.default_ttft_slo_ms)


def add_middleware(server_args: Any, *_args: Any, **_kwargs: Any) -> None:
    """Put ``SloMiddleware`` outermost (BEFORE hook of ``http_server.launch_server``)."""
    from sglang.srt.entrypoints.http_server import app  # noqa: PLC0415 (heavy, this process only)

    app.add_middleware(SloMiddleware, resolver=resolver_of(server_args))


def stamp_request(original: Callable[..., Any], manager: Any, obj: Any, request: Any = None) -> Any:
    """Write SLO and arrival into a request (AROUND hook of ``TokenizerManager.generate_request``).

    The hooked method is an async generator function: it must be called, not awaited.

    Raises:
        SloError: A value is malformed; a ValueError, which every SGLang route maps to HTTP 400.
    """
    if isinstance(obj, GenerateReqInput):
        header = None if request is None else request.scope.get(SCOPE_KEY)
        obj.sampling_params = _stamped(
            obj.sampling_params, resolver_of(manager.server_args), header, time.time()
        )
    return original(manager, obj, request)


def _stamped(
    sampling_params: Any, resolver: SloResolver, header: HeaderSlo | None, now_unix_s: float
) -> Any:
    if isinstance(sampling_params, list):  # a batched request has one per prompt
        return [_stamped(params, resolver, header, now_unix_s) for params in sampling_params]
    params = dict(sampling_params or {})
    stamped = resolver.stamped_params(header, params.get("custom_params"), now_unix_s)
    return {**params, "custom_params": stamped}
