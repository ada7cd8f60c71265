"""The sizes of a model that its kernels see."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Widths and counts of a decoder with gated MLPs and grouped-query attention.

    Attributes:
        num_layers: Of which each has two norms, four products and one attention.
        hidden_size: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Width of a head.
        intermediate_size: Width of an MLP's inside.
        vocab_size: Rows of the LM head.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each linear layer of a block, by name."""
        heads = self.num_heads * self.head_dim
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return {
            "qkv_proj": (self.hidden_size, qkv),
            "o_proj": (heads, self.hidden_size),
            "gate_up_proj": (self.hidden_size, 2 * self.intermediate_size),
            "down_proj": (self.intermediate_size, self.hidden_size),
        }

    def attention_flops(self, num_queries: int, num_keys: int) -> float:
        """Operations of one layer's causal attention: two products over all visible pairs."""
        first = num_keys - num_queries
        num_pairs = num_queries * first + num_queries * (num_queries + 1) / 2
        return 4.0 * num_pairs * self.num_heads * self.head_dim

    def prefill_flops(self, num_tokens: int) -> float:
        """Operations of a whole prefill: products, attention, and one row of logits."""
        per_token = sum(2.0 * a * b for a, b in self.products.values())
        layer = per_token * num_tokens + self.attention_flops(num_tokens, num_tokens)
        return self.num_layers * layer + 2.0 * self.hidden_size * self.vocab_size


def model_shape(folder: Path) -> ModelShape:
    """Read the sizes from a model's configuration.

    Raises:
        UsageError: There is none, or it is of another kind of model.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return ModelShape(
            num_layers=config["num_hidden_layers"],
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
        )
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{folder.name} has no configuration of a decoder: {error!r}") from error
