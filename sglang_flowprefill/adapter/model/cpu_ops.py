"""Lets norms, activations, rotary embeddings and KV writes run compiled on the CPU.

SGLang's fused ops fall back to several small torch operators on a CPU without AMX, each a pass
over memory. ``BaseFusedOp._forward_method`` is where an instance pins the implementation that it
runs (SGLang 0.5.23, ``kernels/fused_op.py``); inputs that a kernel does not take go to SGLang's
own ``forward_native`` as before.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

from sglang_flowprefill.kernels.cpu.native import NativeKernels, can_write_kv, load_native

_WIDTH_MULTIPLE = 16
_DTYPES = frozenset({torch.bfloat16, torch.float32})


def use_compiled_ops(model: torch.nn.Module) -> int:
    """Pin compiled implementations on every op of a CPU model that has one.

    Args:
        model: The loaded model; its ops are changed in place.

    Returns:
        How many ops were pinned; 0 where the kernels cannot be built.
    """
    native = load_native()
    if native is None:
        return 0
    pinned = 0
    for module in model.modules():
        forward = _compiled_forward(module, native)
        if forward is not None:
            module._forward_method = forward
            pinned += 1
    return pinned


def is_compiled(op: Any) -> bool:
    """Tell whether ``use_compiled_ops`` has pinned, or would pin, an implementation on this op."""
    native = load_native()
    return native is not None and _compiled_forward(op, native) is not None


def write_kv(  # noqa: PLR0917 (upstream's signature)
    upstream: Callable[..., None],
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    indices: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Write keys and values of new tokens (AROUND hook of ``memory_pool._set_kv_buffer_impl``).

    SGLang's own write is two ``index_put_``, each of which sorts out shapes for longer than it
    copies a short prompt.
    """
    tensors = (k, v, k_cache, v_cache, indices)
    native = load_native() if can_write_kv(*tensors) else None
    if native is None:
        upstream(*tensors, *args, **kwargs)
    else:
        native.write_kv(*tensors)


def _compiled_forward(module: Any, native: NativeKernels) -> Callable[..., Any] | None:
    if type(module) is RMSNorm and _is_plain_norm(module):
        return _norm_forward(module, native)
    if type(module) is SiluAndMul:
        return _silu_forward(module, native)
    if isinstance(module, RotaryEmbedding) and _is_plain_rope(module):
        return _rope_forward(module, native)
    return None


def _is_plain_norm(norm: RMSNorm) -> bool:
    return (
        norm.weight.dtype in _DTYPES
        and norm.hidden_size % _WIDTH_MULTIPLE == 0
        and norm.variance_size_override is None
        and norm.override_orig_dtype is None
        and not norm.fp32_residual
    )


def _norm_forward(norm: RMSNorm, native: NativeKernels) -> Callable[..., Any]:
    def forward(
        x: torch.Tensor, residual: torch.Tensor | None = None, *args: Any, **kw: Any
    ) -> Any:
        dtype = norm.weight.dtype
        is_plain = _takes(x, dtype) and (residual is None or _takes(residual, dtype))
        has_more = any(value is not None for value in (*args, *kw.values()))
        if has_more or not is_plain:
            return norm.forward_native(x, residual, *args, **kw)
        output = native.add_rms_norm(
            x,
            residual,
            norm.weight,
            norm.variance_epsilon,
            rounds_first=norm.cast_x_before_out_mul,
        )
        return output if residual is None else (output, residual)

    return forward


def _silu_forward(activation: SiluAndMul, native: NativeKernels) -> Callable[..., Any]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if not _takes(x, x.dtype) or x.shape[-1] % (2 * _WIDTH_MULTIPLE):
            return activation.forward_native(x)
        return native.silu_and_mul(x)

    return forward


def _is_plain_rope(rope: RotaryEmbedding) -> bool:
    return (
        type(rope).forward_native is RotaryEmbedding.forward_native
        and rope.is_neox_style
        and rope.rotary_dim == rope.head_size
        and rope.head_size % (2 * _WIDTH_MULTIPLE) == 0
        and not hasattr(rope, "sin_cos_cache")
    )


def _rope_forward(rope: RotaryEmbedding, native: NativeKernels) -> Callable[..., Any]:
    def forward(
        positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *args: Any, **kw: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_plain = (
            all(value is None for value in (*args, *kw.values()))
            and _is_token_rows(query, rope.cos_sin_cache.dtype)
            and _is_token_rows(key, rope.cos_sin_cache.dtype)
            and positions.dtype == torch.int64
            and positions.dim() == 1
        )
        if not is_plain:
            return rope.forward_native(positions, query, key, *args, **kw)
        native.rope_(positions.contiguous(), query, key, rope.cos_sin_cache)
        return query, key

    return forward


def _takes(x: torch.Tensor, dtype: torch.dtype) -> bool:
    return x.dtype == dtype and dtype in _DTYPES and x.dim() == 2 and x.is_contiguous()


def _is_token_rows(x: torch.Tensor, dtype: torch.dtype) -> bool:
    return x.dtype == dtype and dtype in _DTYPES and x.dim() == 2 and x.stride(1) == 1
