"""SGLang's CPU attention backend with prefill attention cut into tiles.

Registered under SGLang's own name ``torch_native``, because SGLang keys its host-side choices on
that name (no CUDA graphs, no Triton allocation kernels; ``arg_groups/attention_hook.py``,
``mem_cache/allocation.py``). Stock SGLang, without FlowPrefill enabled, keeps its own.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from sglang_flowprefill.kernels.cpu.prefill_attention import prefill_attention


class TiledTorchNativeBackend(TorchNativeAttnBackend):
    """Tiled prefill attention; decode as in SGLang.

    Attributes:
        reach: Checkpoint called between tiles; a no-op until the model runner extension sets it.
        max_tile_pairs: Query-key pairs (of one head) of a tile; infinity: one tile.
    """

    reach: Callable[[], None] = staticmethod(lambda: None)
    max_tile_pairs: float = math.inf

    def limit_tiles(self, max_pairs: float) -> None:
        """Cut attention over more than this many query-key pairs (of one head) into tiles."""
        self.max_tile_pairs = max_pairs

    def _run_sdpa_forward_extend(  # noqa: PLR0917 (upstream's signature)
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        extend_prefix_lens: torch.Tensor,
        extend_seq_lens: torch.Tensor,
        encoder_lens: torch.Tensor | None = None,
        *,
        causal: bool = False,
        is_cross_attn: bool = False,
        scaling: float | None = None,
        sliding_window_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Override of the extend attention; shapes as upstream: ``[num_tokens, heads, dim]``.

        A checkpoint between tiles and between sequences.
        """
        if encoder_lens is not None or is_cross_attn or not causal:
            return super()._run_sdpa_forward_extend(
                query,
                output,
                k_cache,
                v_cache,
                req_to_token,
                req_pool_indices,
                seq_lens,
                extend_prefix_lens,
                extend_seq_lens,
                encoder_lens,
                causal=causal,
                is_cross_attn=is_cross_attn,
                scaling=scaling,
                sliding_window_size=sliding_window_size,
                **kwargs,
            )
        reach = _no_boundary if math.isinf(self.max_tile_pairs) else self.reach
        start = 0
        rows = zip(
            req_pool_indices.tolist(), seq_lens.tolist(), extend_seq_lens.tolist(), strict=True
        )
        for row, num_keys, num_queries in rows:
            if start:
                reach()
            stop = start + num_queries
            prefill_attention(
                query[start:stop],
                k_cache,
                v_cache,
                req_to_token[row, :num_keys],
                output[start:stop],
                scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
                sliding_window_size=sliding_window_size,
                reach=reach,
                max_tile_pairs=self.max_tile_pairs,
            )
            start = stop
        return output


def _no_boundary() -> None:
    pass


def register_tiled_attention() -> None:
    """Make SGLang build the tiled backend wherever ``torch_native`` is asked for."""
    ATTENTION_BACKENDS["torch_native"] = TiledTorchNativeBackend
