"""A converted model has the weights, configuration and tokenizer of its GGUF file."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from sglang_flowprefill.cpu.gguf_conversion import UnsupportedGgufError, convert

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 32, 64, 4, 2, 8, 2
BYTES = [chr(code) for code in range(ord("!"), ord("~") + 1)] + ["Ġ"]
TOKENS = ["<|endoftext|>", "<|im_start|>", *BYTES, "ab"]
TEMPLATE = "{{ messages[0]['content'] }}"


def rotary_interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Put rows in llama.cpp's order, the way its own converter does."""
    rows, hidden = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, hidden)
    return halves.swapaxes(1, 2).reshape(rows, hidden)


def write_gguf(path: Path, *, architecture: str = "llama", extra: str = "") -> dict:
    """Write a random two-layer model; return its weights under Hugging Face names."""
    writer = GGUFWriter(path, architecture)
    add_metadata(writer)
    random = np.random.default_rng(0)
    expected = {}
    for gguf_name, name, *shape in tensors():
        weight = random.standard_normal(shape).astype(np.float32)
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        if "ffn_down" in gguf_name:  # one kind of tensor is stored quantized
            stored = quants.quantize(weight, GGMLQuantizationType.Q8_0)
            weight = quants.dequantize(stored, GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name, stored, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name, rotary_interleaved(weight, heads) if heads else weight)
        expected[name] = weight
    if extra:
        writer.add_tensor(extra, np.zeros(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def tensors() -> Iterator[tuple]:
    """Yield GGUF name, Hugging Face name and shape of every weight."""
    yield "token_embd.weight", "model.embed_tokens.weight", len(TOKENS), HIDDEN
    yield "output_norm.weight", "model.norm.weight", HIDDEN
    query, key = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    parts = [
        ("attn_norm", "input_layernorm", HIDDEN),
        ("attn_q", "self_attn.q_proj", query, HIDDEN),
        ("attn_k", "self_attn.k_proj", key, HIDDEN),
        ("attn_v", "self_attn.v_proj", key, HIDDEN),
        ("attn_output", "self_attn.o_proj", HIDDEN, query),
        ("ffn_norm", "post_attention_layernorm", HIDDEN),
        ("ffn_gate", "mlp.gate_proj", INTERMEDIATE, HIDDEN),
        ("ffn_up", "mlp.up_proj", INTERMEDIATE, HIDDEN),
        ("ffn_down", "mlp.down_proj", HIDDEN, INTERMEDIATE),
    ]
    for layer in range(LAYERS):
        for part, module, *shape in parts:
            yield f"blk.{layer}.{part}.weight", f"model.layers.{layer}.{module}.weight", *shape


def add_metadata(writer: GGUFWriter) -> None:
    """Describe the model and its tokenizer of printable ASCII."""
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)


def test_weights_arrive_under_their_names_in_hugging_face_order(tmp_path):
    """Every tensor, plain or quantized, equals the original, rotary rows included."""
    expected = write_gguf(tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "out", "float32")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(weights[name], weight, err_msg=name)


def test_configuration_and_chat_template_come_from_the_file(tmp_path):
    """SGLang reads sizes, special tokens and the template from what was converted."""
    write_gguf(tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["num_key_value_heads"] == KV_HEADS
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert tokenizer["chat_template"] == TEMPLATE
    assert tokenizer["bos_token"] == "<|im_start|>"


def test_the_tokenizer_merges_splits_digits_and_keeps_control_tokens(tmp_path):
    """The three rules of the smollm pre-tokenizer, and a lossless round trip."""
    write_gguf(tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    encoded = tokenizer.encode("<|im_start|>ab 12")
    assert encoded.tokens == ["<|im_start|>", "ab", "Ġ", "1", "2"]
    assert tokenizer.decode(encoded.ids) == "ab 12"


def test_progress_ends_at_its_total(tmp_path):
    """The bar moves forward and becomes full."""
    write_gguf(tmp_path / "tiny.gguf")
    steps: list[tuple[int, int]] = []
    convert(tmp_path / "tiny.gguf", tmp_path / "out", on_progress=lambda *step: steps.append(step))
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1] == len(steps)


def test_another_architecture_is_refused(tmp_path):
    """What the converter does not know is named, not guessed."""
    write_gguf(tmp_path / "tiny.gguf", architecture="qwen2")
    with pytest.raises(UnsupportedGgufError, match=r"general\.architecture is 'qwen2'"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")


def test_an_unknown_tensor_is_refused(tmp_path):
    """Rope scaling, for one, comes as a tensor that a plain Llama has no place for."""
    write_gguf(tmp_path / "tiny.gguf", extra="rope_freqs.weight")
    with pytest.raises(UnsupportedGgufError, match=r"rope_freqs\.weight"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")
