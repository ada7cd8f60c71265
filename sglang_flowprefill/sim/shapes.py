"""What a model computes and keeps per token: layers, products, attention, KV, weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from sglang_flowprefill.errors import PlanError

_BYTES_PER_NUMBER = 2  # bfloat16


class Product(NamedTuple):
    """One matrix product of a layer.

    Attributes:
        name: Of the operator.
        num_weights: Parameters that a token is multiplied with; two FLOP each.
        num_stored: Parameters that the layer keeps for it, all experts included.
    """

    name: str
    num_weights: int
    num_stored: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The shape of a transformer decoder in bfloat16.

    Attributes:
        name: Of the model.
        num_layers: Layers.
        hidden: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Numbers of a head.
        ffn: Width of an MLP, or of one expert.
        vocabulary: Tokens.
        num_experts: Experts of a layer; 1 without.
        experts_per_token: Of them, for each token.
        ties_embeddings: The logits use the embedding's weights.
    """

    name: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    num_experts: int = 1
    experts_per_token: int = 1
    ties_embeddings: bool = False

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the shape of the model in a folder.

        Raises:
            PlanError: There is no config.json, or it does not say what is needed.
        """
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"{folder}: no readable config.json: {error.strerror}") from error
        except ValueError as error:
            raise PlanError(f"{path}: not JSON: {error}") from error
        if not isinstance(config, dict):
            raise PlanError(f"{path}: not a JSON object")
        config = config.get("text_config", config)
        heads = _number(path, config, "num_attention_heads")
        hidden = _number(path, config, "hidden_size")
        experts = config.get("num_experts") or config.get("num_local_experts") or 1
        width = "moe_intermediate_size" if experts > 1 and "moe_intermediate_size" in config else ""
        return cls(
            name=folder.name,
            num_layers=_number(path, config, "num_hidden_layers"),
            hidden=hidden,
            num_heads=heads,
            num_kv_heads=_number(path, config, "num_key_value_heads", heads),
            head_dim=_number(path, config, "head_dim", hidden // heads),
            ffn=_number(path, config, width or "intermediate_size"),
            vocabulary=_number(path, config, "vocab_size"),
            num_experts=experts,
            experts_per_token=(_number(path, config, "num_experts_per_tok") if experts > 1 else 1),
            ties_embeddings=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def products(self) -> tuple[Product, ...]:
        """The matrix products of a layer, in order; attention comes after the first."""
        attention = self.num_heads * self.head_dim
        keys_and_values = 2 * self.num_kv_heads * self.head_dim
        qkv, output = self.hidden * (attention + keys_and_values), self.hidden * attention
        expert = 3 * self.hidden * self.ffn
        if self.num_experts > 1:
            experts = Product("experts", expert * self.experts_per_token, expert * self.num_experts)
            return Product("qkv", qkv, qkv), Product("output", output, output), experts
        up, down = 2 * self.hidden * self.ffn, self.hidden * self.ffn
        return (
            Product("qkv", qkv, qkv),
            Product("output", output, output),
            Product("gate-up", up, up),
            Product("down", down, down),
        )

    @property
    def flop_per_pair(self) -> int:
        """Floating point operations of attention per query-key pair, over all layers."""
        return 4 * self.num_heads * self.head_dim * self.num_layers

    @property
    def num_parameters(self) -> int:
        """Parameters, norms left out."""
        layers = self.num_layers * sum(product.num_stored for product in self.products)
        return layers + self.vocabulary * self.hidden * (1 if self.ties_embeddings else 2)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return _BYTES_PER_NUMBER * self.num_parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of a token's keys and values."""
        return 2 * _BYTES_PER_NUMBER * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def held_bytes_per_token(self) -> int:
        """Bytes of activations that a suspended prefill keeps per token, at the widest operator."""
        width = 2 * self.ffn * self.experts_per_token
        return _BYTES_PER_NUMBER * max(width, 2 * self.hidden)


def _number(path: Path, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(f"{path}: {key!r} must be a whole number of at least 1, got {value!r}")
    return value


KNOWN_SHAPES: Mapping[str, ModelShape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            ModelShape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14_336, 128_256),
            ModelShape("qwen2.5-14b", 48, 5120, 40, 8, 128, 13_824, 152_064),
            ModelShape("llama-3.1-70b", 80, 8192, 64, 8, 128, 28_672, 128_256),
            ModelShape("qwen3-30b-a3b", 48, 2048, 32, 4, 128, 768, 151_936, 128, 8),
        )
    }
)
"""Models with shipped costs. Source: the config.json that each is published with."""


def find_shape(model: str) -> ModelShape:
    """Return the shape of a model by name, or of the one in a folder.

    Raises:
        PlanError: It is neither.
    """
    known = KNOWN_SHAPES.get(model.lower())
    if known is not None:
        return known
    if Path(model).is_dir():
        return ModelShape.from_folder(Path(model))
    raise PlanError(
        f"model {model!r}: neither a folder with a config.json nor one of {', '.join(KNOWN_SHAPES)}"
    )
