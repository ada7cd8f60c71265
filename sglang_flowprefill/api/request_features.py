"""What a request may ask for: the fields of SGLang's requests that are known to survive suspension.

A field that is in neither table is refused once somebody uses it: a feature of a newer SGLang is
HTTP 400 until somebody has read what it keeps during a forward pass, and never tried on a request.
``docs/reference/request-features.md`` is generated from these tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import Any

from sglang_flowprefill.api.body import SLO_KEYS
from sglang_flowprefill.errors import RequestError, quoted

_PROMPT = "the prompt"
_SAMPLING = "sampling, after the forward pass"
_LOGITS = "taken from the logits, which belong to the batch"
_ANSWER = "how the answer is written"
_ROUTING = "where the request goes"
_MEDIA = "text beside it is served where the model is (see compatibility)"
_CACHE = "which prefixes it shares"

HONOURED: Mapping[str, str] = MappingProxyType(
    {
        "rid": "the request's name",
        "session_id": _PROMPT,
        "session_params": _PROMPT,
        "text": _PROMPT,
        "input_ids": _PROMPT,
        "image_data": _MEDIA,
        "video_data": _MEDIA,
        "audio_data": _MEDIA,
        "mm_hashes": _MEDIA,
        "mm_content_hashes": _MEDIA,
        "use_audio_in_video": _MEDIA,
        "video_config": _MEDIA,
        "modalities": _MEDIA,
        "max_dynamic_patch": _MEDIA,
        "min_dynamic_patch": _MEDIA,
        "image_max_dynamic_patch": _MEDIA,
        "video_max_dynamic_patch": _MEDIA,
        "images_config": _MEDIA,
        "mm_processor_kwargs": _MEDIA,
        "need_wait_for_mm_inputs": _MEDIA,
        "num_items_assigned": _MEDIA,
        "encoder_urls": _MEDIA,
        "sampling_params": _SAMPLING,
        "watermark": _SAMPLING,
        "custom_logit_processor": _SAMPLING,
        "require_reasoning": _SAMPLING,
        "max_thinking_tokens": _SAMPLING,
        "return_sampling_mask": _SAMPLING,
        "sampling_logprobs_mode": _SAMPLING,
        "return_entropy": _SAMPLING,
        "return_logprob": _LOGITS,
        "logprob_start_len": _LOGITS,
        "top_logprobs_num": _LOGITS,
        "token_ids_logprob": _LOGITS,
        "return_text_in_logprobs": _ANSWER,
        "return_flat_raw_top_logprobs": _ANSWER,
        "return_flat_raw_output_top_logprobs": _ANSWER,
        "return_flat_raw_top_logprobs_b64": _ANSWER,
        "return_prompt_token_ids": _ANSWER,
        "return_bytes": _ANSWER,
        "stream": _ANSWER,
        "background": _ANSWER,
        "log_metrics": "metrics",
        "no_logs": "logs",
        "custom_labels": "metrics",
        "external_trace_header": "traces",
        "received_time": "traces",
        "lora_path": "needs --enable-lora",
        "lora_id": "needs --enable-lora",
        "bootstrap_host": _ROUTING,
        "bootstrap_port": _ROUTING,
        "bootstrap_room": _ROUTING,
        "bootstrap_pair_key": _ROUTING,
        "decode_tp_size": _ROUTING,
        "routed_dp_rank": _ROUTING,
        "data_parallel_rank": _ROUTING,
        "disagg_prefill_dp_rank": _ROUTING,
        "routing_key": _ROUTING,
        "conversation_id": _ROUTING,
        "http_worker_ipc": _ROUTING,
        "priority": "SGLang's own; ours orders by objective",
        "extra_key": _CACHE,
        "cache_salt": _CACHE,
        "kv_hints": _CACHE,
        "dimensions": "length of an embedding",
        "is_cross_encoder_request": "kind of an embedding",
        **dict.fromkeys(SLO_KEYS, "objective, a field on a patched SGLang"),
    }
)
"""Fields that are served, with what they are about."""

_FORWARD = "it adds inputs to the forward pass, which have not been tried across a suspension"
_CAPTURE = "it collects results layer by layer in buffers that all forward passes share"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "input_embeds": _FORWARD,
        "positional_embed_overrides": _FORWARD,
        "embed_overrides": _FORWARD,
        "embed_override_token_id": _FORWARD,
        "multi_item_delimiter_indices": _FORWARD,
        "token_indices_to_pool": _FORWARD,
        "return_hidden_states": _CAPTURE,
        "return_pooled_hidden_states": _CAPTURE,
        "decision_layout": _FORWARD,
        "return_routed_experts": _CAPTURE,
        "routed_experts_start_len": _CAPTURE,
        "return_indexer_topk": _CAPTURE,
    }
)
"""Fields that are refused, with the reason."""

BEAM_SEARCH = (
    "SGLang selects a beam's members when a forward pass ends, by the one prompt that it "
    "believes to be in chunks; members of suspended beams would be counted twice"
)
_UNKNOWN = "it is not known whether it survives the suspension of a prefill"
_NO_DEFAULT = object()


@dataclass(frozen=True, slots=True)
class _Guarded:
    """A field that nobody may use."""

    name: str
    unused: tuple[Any, ...]
    why: str


def require_servable(request: Any, vocabulary_size: int) -> None:
    """Refuse a request that could not be served, or would fail inside its forward pass.

    Args:
        request: SGLang's ``GenerateReqInput`` or ``EmbeddingReqInput``.
        vocabulary_size: Number of token ids of the model.

    Raises:
        RequestError: Names the field at fault; HTTP 400.
    """
    for guarded in _guarded_fields(type(request)):  # type: ignore[arg-type]  # types are hashable
        value = getattr(request, guarded.name, None)
        if not any(type(value) is type(u) and value == u for u in guarded.unused):
            raise RequestError(guarded.name, f"is not served with FlowPrefill: {guarded.why}")
    for params in _sampling_params(request):
        if (params.get("beam_width") or 1) != 1:
            raise RequestError(
                "sampling_params.beam_width", f"is not served with FlowPrefill: {BEAM_SEARCH}"
            )
    for name in ("input_ids", "token_ids_logprob"):
        _require_known_tokens(name, getattr(request, name, None), vocabulary_size)


@cache
def _guarded_fields(kind: type) -> Sequence[_Guarded]:
    """Return the fields of a request's type that are refused or that nobody has looked at."""
    guarded = []
    for spec in fields(kind):
        if spec.name in HONOURED:
            continue
        default: Any = spec.default
        if spec.default_factory is not MISSING:
            default = spec.default_factory()
        elif default is MISSING:
            default = _NO_DEFAULT
        why = REFUSED.get(spec.name, _UNKNOWN)
        guarded.append(_Guarded(spec.name, (default, None, False), why))
    return guarded


def _sampling_params(request: Any) -> Iterator[Mapping[str, Any]]:
    given = getattr(request, "sampling_params", None)
    for params in given if isinstance(given, list) else [given]:
        if isinstance(params, Mapping):
            yield params


def _require_known_tokens(name: str, ids: Any, vocabulary_size: int) -> None:
    """Refuse token ids that the model has no embedding for."""
    if ids is None:
        return
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise RequestError(name, f"must be a list of token ids, got {quoted(ids)}")
    kinds = set(map(type, ids))
    is_of_several = bool(kinds & {list, tuple})
    for row in ids if is_of_several else [ids]:
        if is_of_several and row is None:
            continue
        wrong_kinds = {type(row)} - {list, tuple} if is_of_several else kinds - {int}
        if wrong_kinds or not {int}.issuperset(map(type, row)):
            raise RequestError(name, f"must hold token ids, got {quoted(row)}")
        if not row:
            continue
        least, most = min(row), max(row)
        if least < 0 or most >= vocabulary_size:
            wrong = least if least < 0 else most
            raise RequestError(
                name, f"has no token {quoted(wrong)}: the model's are 0 to {vocabulary_size - 1}"
            )
