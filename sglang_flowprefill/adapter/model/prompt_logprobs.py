"""Log-probabilities of a prompt, in tiles of rows with a boundary before each.

The logits of all rows of a long prompt are the biggest tensor of its forward pass: 8,000 rows of
49,152 float32 are 1.6 GB, and one operator of seconds on a CPU. SGLang 0.5.23 makes them in chunks
of 2,048 rows already (``SGLANG_LOGPROB_CHUNK_SIZE``); here the chunks are smaller on a CPU, and a
prefill may be suspended between two of them.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.layers.logits_processor import LogitsProcessor
from torch import nn

_TILE_BYTES = 16 * 2**20  # of float32 logits on a CPU: about 10 ms on two cores
_BYTES_PER_LOGIT = 4
_MIN_ROWS = 8


def tile_prompt_logprobs(model: nn.Module, device: str, reach: Callable[[str], None]) -> int:
    """Make a model's prompt log-probabilities in tiles.

    Args:
        model: The loaded model; its logits processors are changed in place.
        device: On a CPU tiles are smaller than SGLang's chunks. Elsewhere they are SGLang's own,
            with a boundary before each; not measured on a GPU.
        reach: Passes a boundary.

    Returns:
        How many logits processors were changed; none on a release that computes them at once.
    """
    num_changed = 0
    for module in model.modules():
        processor = getattr(module, "input_logprob_processor", None)
        if not isinstance(module, LogitsProcessor) or processor is None:
            continue
        if device == "cpu":
            rows = max(_TILE_BYTES // (_BYTES_PER_LOGIT * processor.vocab_size), _MIN_ROWS)
            processor.logprobs_chunk_size = min(processor.logprobs_chunk_size, rows)
        module._get_logits = _bounded(module._get_logits, reach)  # type: ignore[method-assign]
        num_changed += 1
    return num_changed


def _bounded(get_logits: Callable[..., Any], reach: Callable[[str], None]) -> Callable[..., Any]:
    """Return the product with the LM head, with a boundary before it."""

    def bounded(*args: Any, **kwargs: Any) -> Any:
        reach("logits tile")
        return get_logits(*args, **kwargs)

    return bounded
