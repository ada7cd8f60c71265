"""SGLang's CPU attention backend, compiled, with prefill attention cut into tiles.

Registered under SGLang's own name ``torch_native``, because SGLang keys its host-side choices on
that name (no CUDA graphs, no Triton allocation kernels; ``arg_groups/attention_hook.py``,
``mem_cache/allocation.py``). Stock SGLang, without FlowPrefill enabled, keeps its own.

What every layer of a forward pass needs alike, the plan, is made in the first layer and kept where
SGLang keeps such things (``forward_metadata``), so that it follows a suspended forward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import torch
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.executor import no_boundary
from sglang_flowprefill.kernels.cpu.native import PagedKv, can_attend, load_native
from sglang_flowprefill.kernels.cpu.prefill_attention import (
    NewTokens,
    PrefillPlan,
    plan_prefill,
    prefill_attention,
)


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """One row of each sequence: ``[num_sequences]`` int64 each."""

    table_rows: torch.Tensor
    num_keys: torch.Tensor


class TiledTorchNativeBackend(releases.scheduling().TorchNativeAttnBackend):
    """Tiled prefill attention, batched decode attention.

    Attributes:
        reach: Checkpoint called between tiles; a no-op until the model runner extension sets it.
        max_tile_pairs: Query-key pairs (of one head) of a tile; infinity: one tile.
    """

    reach: Callable[[], None] = staticmethod(lambda: None)
    max_tile_pairs: float = math.inf

    def limit_tiles(self, max_pairs: float) -> None:
        """Cut attention over more than this many query-key pairs (of one head) into tiles."""
        self.max_tile_pairs = max_pairs

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Forget the plan of the forward pass before."""
        super().init_forward_metadata(forward_batch)
        self.forward_metadata = None

    @property
    def reach_tile(self) -> Callable[[], None]:
        """What to call between two tiles."""
        return no_boundary if math.isinf(self.max_tile_pairs) else self.reach

    def prefill_plan(
        self,
        req_pool_indices: torch.Tensor,
        extend_seq_lens: torch.Tensor,
        seq_lens: torch.Tensor,
    ) -> PrefillPlan:
        """Return the plan of this forward pass; tensors as in ``ForwardBatch``."""
        if not isinstance(self.forward_metadata, PrefillPlan):
            lengths = (tensor.tolist() for tensor in (req_pool_indices, extend_seq_lens, seq_lens))
            sequences = [*starmap(NewTokens, zip(*lengths, strict=True))]
            self.forward_metadata = plan_prefill(sequences, self.max_tile_pairs)
        return self.forward_metadata

    def decode_plan(self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> DecodePlan:
        """Return the plan of this forward pass; tensors as in ``ForwardBatch``."""
        if not isinstance(self.forward_metadata, DecodePlan):
            self.forward_metadata = DecodePlan(
                *(t.to(torch.int64).contiguous() for t in (req_pool_indices, seq_lens))
            )
        return self.forward_metadata

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

        A checkpoint between tiles.
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
        prefill_attention(
            query,
            PagedKv(k_cache, v_cache, req_to_token),
            self.prefill_plan(req_pool_indices, extend_seq_lens, seq_lens),
            output,
            scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
            sliding_window_size=sliding_window_size,
            reach=self.reach_tile,
        )
        return output

    def _run_sdpa_forward_decode(  # noqa: PLR0917 (upstream's signature)
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        encoder_lens: torch.Tensor | None = None,
        *,
        is_cross_attn: bool = False,
        scaling: float | None = None,
        sliding_window_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Override of the decode attention; shapes as upstream: ``[num_sequences, heads, dim]``."""
        is_plain = encoder_lens is None and not is_cross_attn
        cache = PagedKv(k_cache, v_cache, req_to_token)
        is_taken = is_plain and can_attend(query, cache)
        native = load_native() if is_taken else None
        if native is None:
            return super()._run_sdpa_forward_decode(
                query,
                output,
                k_cache,
                v_cache,
                req_to_token,
                req_pool_indices,
                seq_lens,
                encoder_lens,
                is_cross_attn=is_cross_attn,
                scaling=scaling,
                sliding_window_size=sliding_window_size,
                **kwargs,
            )
        plan = self.decode_plan(req_pool_indices, seq_lens)
        native.decode_attention(
            query,
            cache,
            output,
            table_rows=plan.table_rows,
            num_keys=plan.num_keys,
            scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
            window_size=sliding_window_size,
        )
        return output


def register_tiled_attention() -> None:
    """Make SGLang build the tiled backend wherever ``torch_native`` is asked for."""
    ATTENTION_BACKENDS["torch_native"] = TiledTorchNativeBackend
