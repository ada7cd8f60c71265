"""Costs interpolated in a table of measured or computed passes; the shipped tables.

Between lengths the time is a power of the length (a line in logarithms); what a cached prefix adds,
or what several short prompts spare, is proportional to the query-key pairs. A table is right where
a fitted line is not: for prompts below 512 tokens and for experts.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from sglang_flowprefill.core.predictor import num_attention_pairs
from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.sim.costs.fitted import Sample, fit_prefill_cost
from sglang_flowprefill.sim.costs.pass_cost import PassSeconds

_MAX_ATTENTION_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class DecodeTable:
    """Decode steps by batch: seconds without context, and what each token of it adds.

    Attributes:
        batches: Ascending numbers of requests.
        base_s: Of each, without context.
        token_s: Of each, per token of context.
    """

    batches: Sequence[int]
    base_s: Sequence[float]
    token_s: Sequence[float]

    @classmethod
    def from_samples(cls, samples: Sequence[Sequence[float]]) -> "DecodeTable":
        """Return the table of ``[batch, context of each, seconds]``; one context alone is flat."""
        by_batch: dict[int, list[tuple[float, float]]] = {}
        for batch, context, seconds in samples:
            by_batch.setdefault(int(batch), []).append((batch * context, seconds))
        batches, base_s, token_s = sorted(by_batch), [], []
        for batch in batches:
            ordered = sorted(by_batch[batch])
            (first, first_s), (last, last_s) = ordered[0], ordered[-1]
            slope_s = max((last_s - first_s) / (last - first), 0.0) if last > first else 0.0
            token_s.append(slope_s)
            base_s.append(first_s - slope_s * first)
        return cls(batches, base_s, token_s)

    def step_s(self, num_requests: int, num_context_tokens: int) -> float:
        """Return the seconds of a step; beyond the last batch by the last two."""
        batches = self.batches
        high = min(max(bisect_right(batches, num_requests), 1), len(batches) - 1)
        low = high - 1
        weight = max((num_requests - batches[low]) / (batches[high] - batches[low]), 0.0)
        base_s = self.base_s[low] + weight * (self.base_s[high] - self.base_s[low])
        token_s = self.token_s[low] + min(weight, 1.0) * (self.token_s[high] - self.token_s[low])
        return base_s + token_s * num_context_tokens


class TableCost:
    """Costs by interpolation.

    Args:
        prefill: Passes over one prompt; at least two lengths without a prefix.
        decode: Steps; None where there is no decoding.
        source: Where the numbers come from.

    Attributes:
        source: As given.
        samples: The prefills.
    """

    def __init__(self, prefill: Sequence[Sample], decode: DecodeTable | None, source: str) -> None:
        self.source = source
        self.samples = tuple(prefill)
        alone = sorted((n, seconds) for n, p, seconds in prefill if not p)
        self._lengths = [n for n, _ in alone]
        self._log_lengths = [log(n) for n, _ in alone]
        self._log_seconds = [log(seconds) for _, seconds in alone]
        self._least_s = min(seconds for _, seconds in alone)
        self._decode = decode
        self._pair_s = fit_prefill_cost(prefill).per_attention_pair_s
        slopes = [
            (seconds - self._alone_s(n)) / (n * p) for n, p, seconds in prefill if p and n >= 512
        ]
        if slopes:
            self._pair_s = max(median(slopes), 0.0)

    def prefill(self, num_tokens: int, num_pairs: float, num_requests: int) -> PassSeconds:  # noqa: ARG002
        """Return the interpolated time."""
        alone_s = self._alone_s(num_tokens)
        total_s = alone_s + self._pair_s * (num_pairs - num_attention_pairs(num_tokens))
        total_s = max(total_s, self._least_s, 0.1 * alone_s)
        return PassSeconds(total_s, min(self._pair_s * num_pairs, _MAX_ATTENTION_SHARE * total_s))

    def decode_s(self, num_requests: int, num_context_tokens: int) -> float:
        """Return the interpolated time of a step."""
        if self._decode is None:
            return 0.0
        return self._decode.step_s(num_requests, num_context_tokens)

    def _alone_s(self, num_tokens: int) -> float:
        """Return the time of one prompt of this length without a prefix."""
        lengths = self._lengths
        if num_tokens <= lengths[0]:
            return exp(self._log_seconds[0])
        high = min(bisect_right(lengths, num_tokens), len(lengths) - 1)
        low, x = high - 1, self._log_lengths
        slope = (self._log_seconds[high] - self._log_seconds[low]) / (x[high] - x[low])
        return exp(self._log_seconds[low] + slope * (log(num_tokens) - x[low]))


def shipped_table(gpu: str, model: str, tp: int) -> TableCost | None:
    """Return the shipped costs of a model on this many GPUs; None without any."""
    shipped = _shipped()
    entry = shipped["tables"].get(f"{gpu}/{model}/tp{tp}")
    if entry is None:
        return None
    prefill = [(int(n), int(p), ms / 1e3) for n, p, ms in entry["prefill"]]
    decode = DecodeTable.from_samples([[b, c, ms / 1e3] for b, c, ms in entry["decode"]])
    return TableCost(prefill, decode, f"{shipped['source']} ({shipped['licence']})")


def shipped_names() -> list[str]:
    """Return what there are tables of, as ``GPU/model/tpN``."""
    return sorted(_shipped()["tables"])


def _shipped() -> Any:
    text = files(__package__).joinpath("tables.json").read_text(encoding="utf-8")
    return json.loads(text)


def read_table(path: Path) -> TableCost:
    """Read a table that somebody else made.

    The file holds ``source`` and, in milliseconds, ``prefill`` (new tokens, cached tokens, time)
    and ``decode`` (batch, context of each, time), as ``tables.json`` does.

    Raises:
        PlanError: It cannot be read, or is no such table.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        prefill = [(int(n), int(p), float(ms) / 1e3) for n, p, ms in entry["prefill"]]
        decode = [[int(b), int(c), float(ms) / 1e3] for b, c, ms in entry.get("decode", [])]
        source = str(entry["source"])
    except OSError as error:
        raise PlanError(f"--table {path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"--table {path}: not a table of costs: {error!r}") from error
    if len({n for n, p, _ in prefill if not p}) < 3:
        raise PlanError(f"--table {path}: needs three lengths of prompts without a prefix at least")
    if any(seconds <= 0.0 or n < 1 for n, _, seconds in prefill):
        raise PlanError(f"--table {path}: lengths and times must be above 0")
    if decode and len({batch for batch, _, _ in decode}) < 2:
        raise PlanError(f"--table {path}: decode steps need two sizes of batch at least")
    return TableCost(prefill, DecodeTable.from_samples(decode) if decode else None, source)
