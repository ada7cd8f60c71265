"""Cuts the prefill attention of SGLang's FlashInfer backend into query tiles.

Two methods of the backend are replaced on the instance: planning, which also plans the tiles, and
the extend attention. A forward pass of one tile, and layers that tiles do not fit, run SGLang's own
code. Plans need no care at a switch: ``forward_state.py`` has SGLang plan again on resume, which
plans the tiles again too.

Not measured on a GPU: tested against wrappers that compute in torch, and by recorded signatures.
"""

import logging
import math
from collections.abc import Callable
from itertools import starmap
from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from sglang_flowprefill.kernels.cpu.prefill_attention import NewTokens
from sglang_flowprefill.kernels.flashinfer.prefill_tiles import (
    ALL_POSITIONS,
    AttentionShape,
    PrefillTiles,
)

logger = logging.getLogger(__name__)

_BACKEND = "FlashInferAttnBackend"
_CROSS = "CROSS_ATTENTION"


def tile_flashinfer(backend: Any) -> "TiledFlashInfer | None":
    """Cut a backend's prefill attention into tiles.

    Args:
        backend: SGLang's attention backend; changed in place if it is FlashInfer's.

    Returns:
        The tiles; None for other backends, and where they do not fit, which is logged.
    """
    if type(backend).__name__ != _BACKEND:
        return None
    reason = _reason_against(backend)
    if reason is not None:
        logger.warning(
            "FlowPrefill: FlashInfer attention is not cut into tiles (%s); an urgent request may "
            "wait for the attention of one layer over the whole prompt",
            reason,
        )
        return None
    return TiledFlashInfer(backend)


class TiledFlashInfer:
    """Tiled prefill attention of one FlashInfer backend.

    Args:
        backend: Its planning and extend attention are replaced on the instance.

    Attributes:
        reach: Checkpoint called between tiles; a no-op until the model runner extension sets it.
        max_tile_pairs: Query-key pairs (of one head) of a tile; infinity: nothing is cut.
    """

    def __init__(self, backend: Any) -> None:
        self.reach: Callable[[], None] = lambda: None
        self.max_tile_pairs = math.inf
        self._backend = backend
        self._tiles = PrefillTiles(_wrapper_maker(backend), _shape_of(backend))
        self._plan_whole, self._extend_whole = backend.init_forward_metadata, backend.forward_extend
        backend.init_forward_metadata = self._plan
        backend.forward_extend = self._extend

    def limit_tiles(self, max_pairs: float) -> None:
        """Cut attention over more than this many query-key pairs (of one head) into tiles."""
        self.max_tile_pairs = max_pairs

    def _plan(self, forward_batch: Any) -> Any:
        """Let SGLang plan, which waits for the device; then plan the tiles of a prefill."""
        planned = self._plan_whole(forward_batch)
        self._tiles.drop()
        if forward_batch.forward_mode.is_extend() and forward_batch.spec_info is None:
            new, before = forward_batch.extend_seq_lens_cpu, forward_batch.extend_prefix_lens_cpu
            num_keys = [n + prefix for n, prefix in zip(new, before, strict=True)]
            rows = forward_batch.req_pool_indices.tolist()
            sequences = [*starmap(NewTokens, zip(rows, new, num_keys, strict=True))]
            table = self._backend.req_to_token_pool.req_to_token
            self._tiles.plan(sequences, table, self.max_tile_pairs)
        return planned

    def _extend(  # noqa: PLR0917 (upstream's signature)
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Override of the extend attention; a checkpoint between tiles.

        SGLang's own merges attention to the new tokens with that to the cached ones and writes the
        cache last. A tile attends to both at once, in the cache, which is therefore written first.
        """
        is_tiled = self._tiles.num_tiles > 0 and k is not None and save_kv_cache
        if not is_tiled or not self._fits(layer):
            whole: torch.Tensor = self._extend_whole(
                q, k, v, layer, forward_batch, save_kv_cache, **kwargs
            )
            return whole
        backend = self._backend
        pool = backend.token_to_kv_pool
        location = KVWriteLoc.for_layer(forward_batch, layer, swa_loc=None)
        pool.set_kv_buffer(layer, location, k, v, *backend._kv_write_scales(layer))
        query = q.contiguous().view(-1, layer.tp_q_head_num, layer.head_dim)
        output = torch.empty_like(query)
        self._tiles.attend(
            query,
            pool.get_kv_buffer(layer.layer_id),
            output,
            window=layer.sliding_window_size,
            reach=self.reach,
            sm_scale=layer.scaling,
            k_scale=layer.k_scale_float,
            v_scale=layer.v_scale_float,
        )
        return output.view(-1, layer.tp_q_head_num * layer.head_dim)

    def _fits(self, layer: Any) -> bool:
        """Tell whether tiles compute what a layer asks for: causal, and no cap on the scores."""
        return (
            layer.attn_type == AttentionType.DECODER
            and not layer.is_cross_attention
            and not layer.logit_cap
            and layer.qk_head_dim == layer.v_head_dim
            and layer.sliding_window_size in self._tiles.windows
        )


def _reason_against(backend: Any) -> str | None:
    """Return what the tiles do not know; None where they fit."""
    reasons = {
        "it has cross attention": getattr(backend.dispatch_reason, "name", "") == _CROSS,
        "sliding windows have a KV pool of their own": backend._swa_kv_pool is not None,
        "slots are translated": backend.kv_index_translator.reads_are_translated,
        "multi-item scoring is on": backend.enable_mis,
        "it serves a diffusion model": backend.is_dllm_model,
        "a quantised KV cache is expanded first": backend.prefill_uses_dequant_workspace,
        "it plans no prefills": backend.skip_prefill,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _wrapper_maker(backend: Any) -> Callable[[], Any]:
    """Return a maker of wrappers like SGLang's own, in the same float workspace."""
    wrapper_type = type(backend.prefill_wrappers_paged[0])
    return lambda: wrapper_type(backend.workspace_buffer, "NHD", backend=backend.prefill_backend)


def _shape_of(backend: Any) -> AttentionShape:
    updater = backend.indices_updater_prefill
    window = updater.sliding_window_size
    return AttentionShape(
        updater.num_qo_heads,
        updater.num_kv_heads,
        updater.head_dim,
        updater.q_data_type,
        updater.data_type,
        (ALL_POSITIONS,) if window is None else (ALL_POSITIONS, window),
        backend.prefill_split_tile_size,
    )
