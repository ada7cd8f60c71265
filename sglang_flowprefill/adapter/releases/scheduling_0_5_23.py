"""The scheduler's names in SGLang 0.5.23, which are those that the adapter uses."""

from array import array
from collections.abc import Sequence
from typing import Any

from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.layernorm import (
    Gemma3RMSNorm,
    Gemma4RMSNorm,
    GemmaRMSNorm,
    LayerNorm,
    RMSNorm,
)
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.managers.scheduler import Scheduler, _make_abort_req
from sglang.srt.managers.utils import is_health_check_generate_req
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.model_executor.forward_context import set_forward_context
from sglang.srt.runtime_context import get_forward, get_observability, get_parallel

from sglang_flowprefill.adapter.model.flashinfer import tile_flashinfer

__all__ = [
    "ASKS_LM_HEAD_METHOD",
    "NORMS",
    "PrefillAdder",
    "Scheduler",
    "TorchNativeAttnBackend",
    "data_parallel_rank",
    "forward_flags",
    "is_health_check_generate_req",
    "is_metrics_enabled",
    "make_abort_req",
    "release_uncached",
    "set_forward_context",
    "tile_flashinfer",
    "token_ids",
]

NORMS = (RMSNorm, GemmaRMSNorm, Gemma3RMSNorm, Gemma4RMSNorm, LayerNorm)
"""Modules that normalise rows."""

ASKS_LM_HEAD_METHOD = True
"""Logits are computed by the LM head's ``quant_method`` if that is one of ours."""

make_abort_req = _make_abort_req


def release_uncached(req: Any, tree_cache: Any) -> None:
    """Give back a request's memory; what was computed since its last chunk is not cached.

    SGLang counts KV as committed since its allocation, computed or not.
    """
    release_kv_cache(req, tree_cache, checkpoint=False)


def forward_flags() -> dict[str, Any]:
    """Return the flags that layers set during a forward pass; the caller may write them."""
    flags: dict[str, Any] = get_forward()._plain
    return flags


def is_metrics_enabled(_scheduler: Any) -> bool:
    """Tell whether this server collects metrics."""
    return bool(get_observability().enable_metrics)


def data_parallel_rank(_scheduler: Any) -> int | None:
    """Return which of several data-parallel schedulers this is; None where there is one."""
    rank: int | None = get_parallel().dp_rank
    return rank


def token_ids(tokens: Sequence[int]) -> Any:
    """Return token ids in the container that ``Req`` wants."""
    return array("q", tokens)
