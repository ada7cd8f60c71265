"""A wrapper with FlashInfer's signatures that computes in torch, and the signatures themselves.

Recorded from flashinfer-python 0.7.2, ``flashinfer/prefill.py``; ``tests/upstream`` compares them
with the installed sources where there are any.
"""

import inspect

import torch

RECORDED = {
    "__init__": (
        "self, float_workspace_buffer, kv_layout, use_cuda_graph, qo_indptr_buf, "
        "paged_kv_indptr_buf, paged_kv_indices_buf, paged_kv_last_page_len_buf, custom_mask_buf, "
        "mask_indptr_buf, backend, jit_args, jit_kwargs, variant_owns_mask"
    ),
    "plan": (
        "self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, "
        "num_qo_heads, num_kv_heads, head_dim_qk, page_size, head_dim_vo, custom_mask, "
        "packed_custom_mask, causal, pos_encoding_mode, use_fp16_qk_reduction, sm_scale, "
        "window_left, logits_soft_cap, rope_scale, rope_theta, q_data_type, kv_data_type, "
        "o_data_type, non_blocking, prefix_len_ptr, token_pos_in_items_ptr, "
        "token_pos_in_items_len, max_item_len_ptr, seq_lens, seq_lens_q, block_tables, "
        "max_token_per_sequence, max_sequence_kv, fixed_split_size, disable_split_kv"
    ),
    "forward": (
        "self, q, paged_kv_cache, causal, pos_encoding_mode, use_fp16_qk_reduction, k_scale, "
        "v_scale, window_left, logits_soft_cap, sm_scale, rope_scale, rope_theta"
    ),
}
"""Parameter names by method of ``BatchPrefillWithPagedKVCacheWrapper``."""


def bound(method, *args, **kwargs):
    """Return the arguments by name as the recorded method takes them; TypeError if it does not."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = RECORDED[method].split(", ")
    parameters = [inspect.Parameter(name, kind, default=None) for name in names]
    return inspect.Signature(parameters).bind(None, *args, **kwargs).arguments


class TorchWrapper:
    """One plan at a time, attention in torch with float64 sums."""

    def __init__(self, *args, **kwargs):
        self.made_with = bound("__init__", *args, **kwargs)
        self.num_plans = 0

    def plan(self, *args, **kwargs):
        """Keep copies: FlashInfer's schedule does not follow the tensors either."""
        given = bound("plan", *args, **kwargs)
        assert given["page_size"] == 1
        assert given["paged_kv_indices"].dtype == given["qo_indptr"].dtype == torch.int32
        self.given = {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in given.items()
        }
        self.num_plans += 1

    def forward(self, *args, **kwargs):
        """Attend; the last query of a sequence sees its last key."""
        call = bound("forward", *args, **kwargs)
        query, (keys, values), plan = call["q"], call["paged_kv_cache"], self.given
        assert call["causal"]
        assert plan["causal"]
        assert call["window_left"] == plan["window_left"]
        assert query.shape[0] == plan["qo_indptr"][-1], "q.shape[0] does not match qo_indptr[-1]"
        group = query.shape[1] // keys.shape[1]
        output = torch.empty_like(query)
        rows, slots = plan["qo_indptr"].tolist(), plan["paged_kv_indptr"].tolist()
        for index in range(len(rows) - 1):
            these = slice(rows[index], rows[index + 1])
            seen = plan["paged_kv_indices"][slots[index] : slots[index + 1]].long()
            k, v = (t[seen].double().repeat_interleave(group, dim=1) for t in (keys, values))
            scores = torch.einsum("qhd,khd->hqk", query[these].double(), k) * call["sm_scale"]
            position = torch.arange(len(seen) - (these.stop - these.start), len(seen))[:, None]
            key = torch.arange(len(seen))
            hidden = key > position
            if call["window_left"] >= 0:
                hidden |= key < position - call["window_left"]
            weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
            output[these] = torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype)
        return output
