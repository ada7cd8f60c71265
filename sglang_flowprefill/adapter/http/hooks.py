"""Hooks of the process that speaks HTTP: arrival stamps and SLOs, validated before tokenizing."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import fastapi
from starlette.middleware import Middleware

from sglang_flowprefill.adapter.flags import can_reject, config_of, slo_classes_of, state_address_of
from sglang_flowprefill.adapter.http.live_routes import add_live_routes
from sglang_flowprefill.api.answer import report_abort
from sglang_flowprefill.api.body import SLO_KEYS
from sglang_flowprefill.api.http import SloMiddleware, take_header
from sglang_flowprefill.api.request_features import require_servable
from sglang_flowprefill.api.slo import HeaderSlo, SloResolver, with_own_fields

_APP_PATH_VARIABLE = "SGLANG_HTTP_SERVER_APP_PATH"
_WORKER_APP = "sglang_flowprefill.adapter.http.worker:app"
_RESOLVER_ATTRIBUTE = "_flowprefill_resolver"


def add_middleware(server_args: Any, *_args: Any, **_kwargs: Any) -> None:
    """Put ``SloMiddleware`` before SGLang's routes, here or in the workers to come.

    BEFORE hook of ``http_server.launch_server``.
    """
    from sglang.srt.entrypoints.http_server import app  # noqa: PLC0415 (heavy, this process only)

    if server_args.tokenizer_worker_num > 1:
        os.environ[_APP_PATH_VARIABLE] = _WORKER_APP
    else:
        put_middleware(app, server_args)


def put_middleware(app: fastapi.FastAPI, server_args: Any) -> None:
    """Put ``SloMiddleware`` before an application's routes, and add ours to them.

    Args:
        app: SGLang's, not serving yet.
        server_args: SGLang's settings, with ours on them.
    """
    classes = slo_classes_of(server_args)
    # Innermost: SGLang's CORS headers and API keys come first, for our errors too.
    app.user_middleware.append(
        Middleware(
            SloMiddleware,
            resolver=SloResolver(classes),
            can_reject=can_reject(config_of(server_args), classes),
        )
    )
    add_live_routes(app, state_address_of(server_args))


def report_rejection(_manager: Any, out: Any, *_args: Any, **_kwargs: Any) -> None:
    """Tell the middleware of an abort (BEFORE hook of ``_handle_abort_finish_reason``)."""
    report_abort(out["meta_info"]["finish_reason"])


def stamp_request(original: Callable[..., Any], manager: Any, obj: Any, request: Any = None) -> Any:
    """Write SLO and arrival into a request (AROUND hook of ``TokenizerManager.generate_request``).

    The hooked method is an async generator function: it must be called, not awaited.

    Raises:
        SloError: A value is malformed; a ValueError, which every SGLang route maps to HTTP 400.
        RequestError: The request asks for something that cannot be served; likewise.
    """
    require_servable(obj, manager.model_config.vocab_size)
    header = None if request is None else take_header(request.scope)
    own_fields = {name: getattr(obj, name, None) for name in SLO_KEYS}
    obj.sampling_params = _stamped(
        obj.sampling_params, own_fields, _resolver_of(manager), header, time.time()
    )
    return original(manager, obj, request)


def whole_model_name(original: Callable[..., Any], serving: Any, model: str) -> Any:
    """Take ``name:tag`` for a name where no LoRA adapters are served.

    AROUND hook of ``OpenAIServingBase._parse_model_parameter``.
    """
    if serving.tokenizer_manager.server_args.enable_lora:
        return original(serving, model)
    return model, None


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
