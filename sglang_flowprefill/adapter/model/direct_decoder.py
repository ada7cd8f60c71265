"""Runs the decoder layers of Llama-like models on a CPU, operator after operator, and nothing else.

Between two operators of a layer SGLang's modules decide again what was decided at start-up: module
hooks, residual streams, tensor parallelism, graphs. For a prompt of a hundred tokens, or one token
of decoding, that takes as long as the operators. Here the same compiled operators are called with
the same tensors in the same order, each behind its boundary: results are equal to the bit, and a
prefill can be suspended wherever it could before.

Only models whose layers are exactly SGLang's (``models/llama.py``, ``models/qwen2.py``) on one rank
run so, and of their forward passes those in which no operator is cut into row tiles; all others
run through the modules as ever.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sglang.srt.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.models import llama, qwen2
from torch import nn

from sglang_flowprefill.adapter.model.attention import TiledTorchNativeBackend
from sglang_flowprefill.adapter.model.cpu_ops import is_compiled
from sglang_flowprefill.adapter.model.packed_weights import product_of
from sglang_flowprefill.kernels.cpu.native import NativeKernels, PagedKv, can_write_kv, load_native
from sglang_flowprefill.kernels.cpu.prefill_attention import attend_in_tiles

logger = logging.getLogger(__name__)

_LAYERS = {
    llama.LlamaModel: (llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP),
    qwen2.Qwen2Model: (qwen2.Qwen2DecoderLayer, qwen2.Qwen2Attention, qwen2.Qwen2MLP),
}
"""By class of the decoder: those of its layers and of their parts. Exactly these: a subclass may
compute something else."""

_PRODUCTS = (QKVParallelLinear, MergedColumnParallelLinear, RowParallelLinear)
_MODES = frozenset({ForwardMode.EXTEND, ForwardMode.DECODE})

Boundary = Callable[[], None]
_Product = Callable[[torch.Tensor], torch.Tensor]
_Norm = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    """The operators of one layer in their order, each after its boundary."""

    before_input_norm: Boundary
    input_norm: _Norm
    before_qkv: Boundary
    qkv: _Product
    before_attention: Boundary
    attention: RadixAttention
    before_output: Boundary
    output: _Product
    before_mlp_norm: Boundary
    mlp_norm: _Norm
    before_gate_up: Boundary
    gate_up: _Product
    before_down: Boundary
    down: _Product


class DirectDecoder:
    """Takes the place of one decoder's ``forward``.

    Args:
        decoder: One that ``can_run_directly``.
        backend: Attention backend of its model runner.
        boundary_of: Returns what to call before an operator runs; asked once for each.
        max_num_rows: Asked in each forward pass: those with more tokens run through the modules.
    """

    def __init__(
        self,
        decoder: Any,
        backend: TiledTorchNativeBackend,
        boundary_of: Callable[[nn.Module], Boundary],
        max_num_rows: Callable[[], float],
    ) -> None:
        native = load_native()
        assert native is not None, "asked before"
        self._native = native
        self._decoder = decoder
        self._backend = backend
        self._max_num_rows = max_num_rows
        self._forward_of_modules = decoder.forward
        self._layers = [_operators_of(layer, native, boundary_of) for layer in decoder.layers]
        self._before_norm = boundary_of(decoder.norm)
        self._norm = _norm_of(decoder.norm, native)
        decoder.forward = self.forward
        logger.info(
            "FlowPrefill: %d decoder layers run without their modules wherever no operator is cut",
            len(self._layers),
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: Any,
        input_embeds: torch.Tensor | None = None,
        pp_proxy_tensors: Any = None,
    ) -> Any:
        """Return ``[num_tokens, hidden_size]``, or whatever the modules return in its place."""
        is_direct = (
            forward_batch.forward_mode in _MODES
            and input_embeds is None
            and positions.shape == forward_batch.out_cache_loc.shape
            and 0 < positions.shape[0] <= self._max_num_rows()
            and not self._decoder.layers_to_capture
        )
        if not is_direct:
            return self._forward_of_modules(
                input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors
            )
        attention = self._decoder.layers[0].self_attn
        tokens = _Tokens(self._native, self._backend, attention, positions, forward_batch)
        hidden, residual = self._decoder.embed_tokens(input_ids), None
        for layer in self._layers:
            layer.before_input_norm()
            normed = layer.input_norm(hidden, residual)
            residual = hidden if residual is None else residual
            layer.before_qkv()
            qkv = layer.qkv(normed)
            tokens.rotate(qkv)
            layer.before_attention()
            attended = tokens.attend(qkv, layer.attention)
            layer.before_output()
            hidden = layer.output(attended)
            layer.before_mlp_norm()
            normed = layer.mlp_norm(hidden, residual)
            layer.before_gate_up()
            activated = self._native.silu_and_mul(layer.gate_up(normed))
            layer.before_down()
            hidden = layer.down(activated)
        self._before_norm()
        return self._norm(hidden, residual)


class _Tokens:
    """The tokens of one forward pass: where they stand, and what they attend to.

    Args:
        native: Compiled kernels.
        backend: Plans attention, once for all layers.
        attention: Of any layer; all have the same shape.
        positions: ``[num_tokens]`` int64.
        forward_batch: SGLang's; extends or decodes.
    """

    def __init__(
        self,
        native: NativeKernels,
        backend: TiledTorchNativeBackend,
        attention: Any,
        positions: torch.Tensor,
        forward_batch: Any,
    ) -> None:
        self._native = native
        self._pool = backend.token_to_kv_pool
        self._table = backend.req_to_token_pool.req_to_token
        self._positions = positions.contiguous()
        self._slots = forward_batch.out_cache_loc.contiguous()
        self._cos_sin = attention.rotary_emb.cos_sin_cache
        self._widths = (attention.q_size, attention.kv_size, attention.kv_size)
        self._query_heads = (-1, attention.num_heads, attention.head_dim)
        self._kv_heads = (-1, attention.num_kv_heads, attention.head_dim)
        self._attention = _planned_attention(native, backend, forward_batch)

    def attend(self, qkv: torch.Tensor, layer: RadixAttention) -> torch.Tensor:
        """Write keys and values and attend.

        Args:
            qkv: ``[num_tokens, heads * dim]``: query, keys and values side by side, rotated.
            layer: For its place in the cache, scale and window.

        Returns:
            ``[num_tokens, num_heads * dim]``.
        """
        query, key, value = qkv.split_with_sizes(self._widths, 1)
        cache = PagedKv(
            self._pool.get_key_buffer(layer.layer_id),
            self._pool.get_value_buffer(layer.layer_id),
            self._table,
        )
        self._native.write_kv(
            key.view(self._kv_heads),
            value.view(self._kv_heads),
            cache.keys,
            cache.values,
            self._slots,
        )
        output = query.new_empty(query.shape)
        self._attention(
            query.view(self._query_heads),
            cache,
            output=output.view(self._query_heads),
            scale=layer.scaling,
            window_size=None if layer.sliding_window_size < 0 else layer.sliding_window_size,
        )
        return output

    def rotate(self, qkv: torch.Tensor) -> None:
        """Apply the rotary embedding to query and keys, in place."""
        query, key, _ = qkv.split_with_sizes(self._widths, 1)
        self._native.rope_(self._positions, query, key, self._cos_sin)


def can_run_directly(model: nn.Module, backend: Any) -> bool:
    """Tell whether a loaded model's layers are what ``DirectDecoder`` repeats, on one CPU rank.

    To be asked before boundaries are installed: hooks that modules have then are somebody else's,
    who wants to see the modules run.
    """
    decoder: Any = getattr(model, "model", None)
    classes = _LAYERS.get(type(decoder))
    return (
        classes is not None
        and decoder.pp_group.world_size == 1
        and not any(part._forward_pre_hooks or part._forward_hooks for part in decoder.modules())
        and is_compiled(decoder.norm)
        and all(_is_plain_layer(layer, classes) for layer in decoder.layers)
        and _is_plain_cache(backend, decoder.norm.weight.dtype)
    )


def _operators_of(
    layer: Any, native: NativeKernels, boundary_of: Callable[[nn.Module], Boundary]
) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        before_input_norm=boundary_of(layer.input_layernorm),
        input_norm=_norm_of(layer.input_layernorm, native),
        before_qkv=boundary_of(attention.qkv_proj),
        qkv=product_of(attention.qkv_proj),
        before_attention=boundary_of(attention.attn),
        attention=attention.attn,
        before_output=boundary_of(attention.o_proj),
        output=product_of(attention.o_proj),
        before_mlp_norm=boundary_of(layer.post_attention_layernorm),
        mlp_norm=_norm_of(layer.post_attention_layernorm, native),
        before_gate_up=boundary_of(mlp.gate_up_proj),
        gate_up=product_of(mlp.gate_up_proj),
        before_down=boundary_of(mlp.down_proj),
        down=product_of(mlp.down_proj),
    )


def _norm_of(norm: Any, native: NativeKernels) -> _Norm:
    weight, epsilon = norm.weight, norm.variance_epsilon
    rounds_first = norm.cast_x_before_out_mul
    add_rms_norm = native.add_rms_norm
    return lambda x, residual: add_rms_norm(x, residual, weight, epsilon, rounds_first=rounds_first)


def _planned_attention(
    native: NativeKernels, backend: TiledTorchNativeBackend, forward_batch: Any
) -> Callable[..., None]:
    """Return the attention of a batch, planned: of query, cache, output, scale and window."""
    rows, seq_lens = forward_batch.req_pool_indices, forward_batch.seq_lens
    if forward_batch.forward_mode == ForwardMode.DECODE:
        plan = backend.decode_plan(rows, seq_lens)
        return partial(native.decode_attention, table_rows=plan.table_rows, num_keys=plan.num_keys)
    return partial(
        attend_in_tiles,
        native,
        plan=backend.prefill_plan(rows, forward_batch.extend_seq_lens, seq_lens),
        reach=backend.reach_tile,
    )


def _is_plain_layer(layer: Any, classes: tuple[type, type, type]) -> bool:
    if type(layer) is not classes[0]:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    ops = (layer.input_layernorm, layer.post_attention_layernorm, attention.rotary_emb, mlp.act_fn)
    products = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
    dtype = layer.input_layernorm.weight.dtype
    return (
        (type(attention), type(mlp)) == classes[1:]
        and type(attention.attn) is RadixAttention
        and attention.num_heads == attention.total_num_heads
        and attention.rotary_emb.cos_sin_cache.dtype == dtype
        and all(map(is_compiled, ops))
        and all(_is_plain_product(linear, dtype) for linear in products)
    )


def _is_plain_product(linear: Any, dtype: torch.dtype) -> bool:
    return (
        type(linear) in _PRODUCTS  # LoRA puts others in their place
        and isinstance(linear.quant_method, UnquantizedLinearMethod)
        and linear.weight.dtype == dtype
        and not linear.skip_bias_add
    )


def _is_plain_cache(backend: Any, dtype: torch.dtype) -> bool:
    if not isinstance(backend, TiledTorchNativeBackend):
        return False
    pool = backend.token_to_kv_pool
    if type(pool) is not MHATokenToKVPool or pool.dtype != dtype:
        return False
    keys, values = pool.k_buffer[0], pool.v_buffer[0]
    slots = torch.zeros(1, dtype=torch.int64)
    return keys.dtype == dtype and can_write_kv(keys[:1], values[:1], keys, values, slots)
