"""Converts a GGUF file of a small Llama into a Hugging Face folder that SGLang serves.

Covers what the embedded model needs and refuses everything else: architecture ``llama`` without
rope scaling, byte-level BPE with the ``smollm`` pre-tokenizer. No model code and no network are
involved. The folder holds ``model.safetensors``, ``config.json``, ``generation_config.json``,
``tokenizer.json`` and ``tokenizer_config.json`` with the chat template.

torch, gguf, safetensors and tokenizers are imported inside functions: together they take
seconds, and a process that only asks where the converted model lies needs none of them.
"""
# ruff: noqa: PLC0415

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sglang_flowprefill.errors import ModelConversionError

if TYPE_CHECKING:
    import numpy as np

DTYPES: Final = ("bfloat16", "float32")

# Raise it when the same GGUF file comes to give other bytes; cached models are then remade.
CONVERTER_VERSION: Final = 1

_GGUF_CONTROL_TOKEN: Final = 3
_TOP_LEVEL_TENSORS: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_TENSORS: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class UnsupportedGgufError(ModelConversionError):
    """The GGUF file is not of the one kind that this converter understands."""


def convert(
    source: Path,
    target: Path,
    dtype: str = "bfloat16",
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Write the model in ``source`` as a Hugging Face folder.

    Args:
        source: The GGUF file, quantized or not.
        target: The folder, made if missing. If this raises, it holds a part of the model.
        dtype: Of the weights, one of ``DTYPES``.
        on_progress: Called with (steps done, steps in all) after every tensor and file.

    Raises:
        UnsupportedGgufError: The file lacks something, or has something unknown.
    """
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(source)
    metadata = _Metadata(source, {key: field.contents() for key, field in reader.fields.items()})
    metadata.expect("general.architecture", "llama")
    metadata.expect("tokenizer.ggml.model", "gpt2")
    metadata.expect("tokenizer.ggml.pre", "smollm")
    steps = len(reader.tensors) + 2  # and the weights' file, and the tokenizer

    weights = {}
    for name, array in _named_weights(reader.tensors, metadata):
        # A copy, because the reader's arrays are read-only views of the mapped file.
        weights[name] = torch.tensor(array).to(getattr(torch, dtype))
        on_progress(len(weights), steps)

    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    on_progress(steps - 1, steps)

    config = _config(metadata, dtype, tied="lm_head.weight" not in weights)
    _write_json(target / "config.json", config)
    generation = {key: value for key, value in config.items() if key.endswith("_token_id")}
    _write_json(target / "generation_config.json", generation)
    _write_tokenizer(target, metadata)
    on_progress(steps, steps)


class _Metadata:
    """The key-value part of a GGUF file; a missing key is an error that names it."""

    def __init__(self, source: Path, values: dict[str, Any]) -> None:
        self._source = source
        self._values = values

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise UnsupportedGgufError(f"{self._source} has no metadata {key!r}")
        return self._values[key]

    def expect(self, key: str, value: str) -> None:
        """Refuse the file unless ``key`` has ``value``."""
        if self[key] != value:
            raise UnsupportedGgufError(
                f"{self._source}: {key} is {self[key]!r}, only {value!r} can be converted"
            )


def _named_weights(tensors: Any, metadata: _Metadata) -> Iterator[tuple[str, "np.ndarray"]]:
    """Yield each weight under its Hugging Face name, float32, in Hugging Face row order."""
    from gguf.quants import dequantize

    heads = {
        "attn_q": metadata["llama.attention.head_count"],
        "attn_k": metadata["llama.attention.head_count_kv"],
    }
    for tensor in tensors:
        name, part = _hugging_face_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type)
        yield name, _split_rotary_halves(weight, heads[part]) if part in heads else weight


def _hugging_face_name(gguf_name: str) -> tuple[str, str]:
    """Translate ``blk.3.attn_q.weight``; the second value is the part, here ``attn_q``."""
    if gguf_name in _TOP_LEVEL_TENSORS:
        return _TOP_LEVEL_TENSORS[gguf_name], ""
    match gguf_name.split("."):
        case ["blk", layer, part, "weight"] if part in _LAYER_TENSORS:
            return f"model.layers.{layer}.{_LAYER_TENSORS[part]}.weight", part
    raise UnsupportedGgufError(f"tensor {gguf_name!r} has no place in a plain Llama")


def _split_rotary_halves(weight: "np.ndarray", heads: int) -> "np.ndarray":
    """Reorder the rows of a query or key projection from llama.cpp's order.

    Both rotate pairs of rows within a head. llama.cpp keeps a pair side by side (0, 1), (2, 3),
    ...; Hugging Face keeps all first members before all second ones: 0, 2, ..., 1, 3, ....

    Args:
        weight: [heads * head_dim, hidden]
        heads: Number of heads; the key projection has fewer than the query.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def _config(metadata: _Metadata, dtype: str, *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "max_position_embeddings": metadata["llama.context_length"],
        # GGUF keeps it as float32, which reads back as 9.99999974e-06
        "rms_norm_eps": round(metadata["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": metadata["llama.rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(target: Path, metadata: _Metadata) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    # What "smollm" stands for: every digit by itself, then GPT-2's byte-level rule.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _GGUF_CONTROL_TOKEN
        ]
    )
    tokenizer.save(str(target / "tokenizer.json"))
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
            "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
            "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
            "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
            "model_max_length": metadata["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "chat_template": metadata["tokenizer.chat_template"],
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
