"""Hooks of the process that speaks HTTP: arrival stamps and SLOs, validated before tokenizing."""

import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from sglang.srt.managers.io_struct import GenerateReqInput

from sglang_flowprefill.adapter.flags import can_reject, config_of, slo_classes_of, state_address_of
from sglang_flowprefill.adapter.http.live_routes import add_live_routes
from sglang_flowprefill.api.answer import report_abort
from sglang_flowprefill.api.http import SCOPE_KEY, SloMiddleware
from sglang_flowprefill.api.slo import SLO_KEYS, HeaderSlo, SloResolver, with_own_fields

_RESOLVER_ATTRIBUTE = "_flowprefill_resolver"


def add_middleware(server_args: Any, *_args: Any, **_kwargs: Any) -> None:
    """Put ``SloMiddleware`` outside SGLang's routes, and add ours to them.

    BEFORE hook of ``http_server.launch_server``.
    """
    from sglang.srt.entrypoints.http_server import app  # noqa: PLC0415 (heavy, this process only)

    classes = slo_classes_of(server_args)
    app.add_middleware(
        SloMiddleware,
        resolver=SloResolver(classes),
        can_reject=can_reject(config_of(server_args), classes),
        has_own_fields=has_slo_fields(),
    )
    add_live_routes(app, state_address_of(server_args))


def has_slo_fields() -> bool:
    """Tell whether SGLang's request type has SLO fields, which a patch gives it."""
    return set(SLO_KEYS) <= {field.name for field in fields(GenerateReqInput)}


def report_rejection(_manager: Any, out: Any, *_args: Any, **_kwargs: Any) -> None:
    """Tell the middleware of an abort (BEFORE hook of ``_handle_abort_finish_reason``)."""
    report_abort(out["meta_info"]["finish_reason"])


def stamp_request(original: Callable[..., Any], manager: Any, obj: Any, request: Any = None) -> Any:
    """Write SLO and arrival into a request (AROUND hook of ``TokenizerManager.generate_request``).

    The hooked method is an async generator function: it must be called, not awaited.

    Raises:
        SloError: A value is malformed; a ValueError, which every SGLang route maps to HTTP 400.
    """
    if isinstance(obj, GenerateReqInput):
        header = None if request is None else request.scope.get(SCOPE_KEY)
        own_fields = {name: getattr(obj, name, None) for name in SLO_KEYS}
        obj.sampling_params = _stamped(
            obj.sampling_params, own_fields, _resolver_of(manager), header, time.time()
        )
    return original(manager, obj, request)


def _resolver_of(manager: Any) -> SloResolver:
    """Return the rules of this engine, read from its settings once."""
    resolver: SloResolver | None = getattr(manager, _RESOLVER_ATTRIBUTE, None)
    if resolver is None:
        resolver = SloResolver(slo_classes_of(manager.server_args))
        setattr(manager, _RESOLVER_ATTRIBUTE, resolver)
    return resolver


def _stamped(
    sampling_params: Any,
    own_fields: Mapping[str, Any],
    resolver: SloResolver,
    header: HeaderSlo | None,
    now_unix_s: float,
) -> Any:
    if isinstance(sampling_params, list):  # a batched request has one per prompt
        return [
            _stamped(params, own_fields, resolver, header, now_unix_s) for params in sampling_params
        ]
    params = dict(sampling_params or {})
    custom_params = with_own_fields(params.get("custom_params"), own_fields)
    stamped = resolver.stamped_params(header, custom_params, now_unix_s)
    return {**params, "custom_params": stamped}
