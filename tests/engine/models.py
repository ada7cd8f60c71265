"""Tiny models of the families people serve: real architectures, seeded random weights, float32.

SGLang's dummy weights would do for speed, but not as an oracle: they are so small that prompts
hardly matter. Weights drawn with standard deviation 0.2 make different prompts end differently.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCAB_SIZE = 2048
SLIDING_WINDOW = 32  # well inside the test prompts, so that windows really cut


@dataclass(frozen=True)
class Family:
    """One architecture at toy size.

    Attributes:
        model_type: What transformers calls it.
        fields: Settings of its own, over the common ones.
        num_layers: Transformer blocks.
    """

    model_type: str
    fields: dict[str, Any] = field(default_factory=dict)
    num_layers: int = 3


_EXPERTS = {"num_experts_per_tok": 2, "tie_word_embeddings": False}

FAMILIES = {
    "llama": Family("llama"),
    "mistral": Family("mistral", {"sliding_window": None}),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "qwen3_moe": Family(
        "qwen3_moe",
        {"num_experts": 8, "moe_intermediate_size": 64, "norm_topk_prob": True} | _EXPERTS,
    ),
    "mixtral": Family("mixtral", {"num_local_experts": 8, "sliding_window": None} | _EXPERTS),
    "gemma2": Family(
        "gemma2",
        {
            "hidden_act": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 32,
            "sliding_window": SLIDING_WINDOW,
        },
        num_layers=4,
    ),
    "gemma3": Family(
        "gemma3_text",
        {
            "query_pre_attn_scalar": 32,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        },
        num_layers=4,
    ),
    "phi3": Family("phi3", {"sliding_window": None, "pad_token_id": 2}),
    "olmo2": Family("olmo2"),
    "granite": Family("granite"),
    "ernie4_5": Family("ernie4_5"),
    "glm4": Family(
        "glm4", {"partial_rotary_factor": 0.5, "pad_token_id": 2, "tie_word_embeddings": False}
    ),
    "glm4_moe": Family(
        "glm4_moe",
        {
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "partial_rotary_factor": 0.5,
        }
        | _EXPERTS,
    ),
    "cohere2": Family(
        "cohere2",
        {
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "pad_token_id": 0,
        },
        num_layers=4,
    ),
}


def build_model(name: str, folder: Path, *, num_layers: int | None = None) -> Path:
    """Return a folder with the model, made now unless it is there.

    Args:
        name: Key of ``FAMILIES``.
        folder: Takes one folder per model.
        num_layers: Blocks, if not as many as the family says.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family = FAMILIES[name]
    layers = num_layers or family.num_layers
    path = folder / f"{name}-{layers}"
    if (path / "config.json").exists():
        return path
    common = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(family.model_type, **common | family.fields)
    torch.manual_seed(zlib.crc32(name.encode()))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(path)
    return path
