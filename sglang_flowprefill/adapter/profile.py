"""Start-up profile: how long prefills and their operators take here, kept on disk.

The cache key is everything the times depend on and that can be told at start-up: model, dtype,
device, attention backend, threads, versions. A cache that cannot be read is measured again.
"""

import hashlib
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from sglang_flowprefill.cache import cache_folder
from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.executor import ProfileSample, Ranks, fit_prefill_cost
from sglang_flowprefill.kernels.cpu.native import load_native

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 2
_LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_NUM_REPEATS = {16: 5, 32: 5, 64: 5, 128: 3, 256: 3, 512: 3, 1024: 2}
"""The fastest run counts; longer prompts run once, their relative noise being small."""
_OPERATOR_LENGTH = 512


class Measures(Protocol):
    """What runs prefills to be timed."""

    def prefill_s(self, num_tokens: int) -> float:
        """Run one prefill of that many tokens and return its seconds."""
        ...

    def operator_seconds_per_row(self, num_tokens: int) -> dict[str, float]:
        """Run one prefill and return how long its operators took per row, by family."""
        ...


@dataclass(frozen=True, slots=True)
class Profile:
    """What a machine takes for one model.

    Attributes:
        cost: Predictor of whole prefills.
        operator_seconds_per_row: Seconds per token of norms, linear layers and MLPs, by family.
    """

    cost: PrefillCost
    operator_seconds_per_row: Mapping[str, float]


class _CachedProfile(msgspec.Struct, forbid_unknown_fields=True):
    format_version: int
    key: dict[str, str]
    samples: list[ProfileSample]
    operator_seconds_per_row: dict[str, float]


def prefill_profile(
    key: Mapping[str, str],
    max_tokens: int,
    measures: Measures,
    cache_dir: str | None,
    ranks: Ranks,
) -> Profile:
    """Return the profile of this machine and model, from the cache or by measuring now.

    Args:
        key: What the times depend on.
        max_tokens: Longest prompt that may be measured.
        measures: Runs prefills.
        cache_dir: Folder of cached profiles, None for the default one.
        ranks: All measure or none does, and all take the leader's times: they decide where the
            tiles lie.
    """
    key = {**key, "machine": platform.processor() or platform.machine(), "cpu": _cpu_model()}
    path = _cache_path(key, Path(cache_dir) if cache_dir else cache_folder() / "profiles")
    cached = ranks.agree(lambda: _read(path, key))
    if cached is None:
        own = _CachedProfile(_FORMAT_VERSION, dict(key), *_measure(max_tokens, measures))
        cached = ranks.agree(lambda: own)
        if ranks.is_leader:
            _write(path, cached)
    cost = fit_prefill_cost(cached.samples)
    logger.info(
        "FlowPrefill: prefill of n tokens predicted as %.1f ms + %.3f ms n + %.3f us n^2/2",
        cost.base_s * 1e3,
        cost.per_token_s * 1e3,
        cost.per_attention_pair_s * 1e6,
    )
    return Profile(cost, cached.operator_seconds_per_row)


def _measure(max_tokens: int, measures: Measures) -> tuple[list[ProfileSample], dict[str, float]]:
    lengths = [n for n in _LENGTHS if n <= max_tokens]
    logger.info("FlowPrefill: measuring prefills of %s tokens (once; cached)", lengths)
    operators = measures.operator_seconds_per_row(min(_OPERATOR_LENGTH, lengths[-1]))
    samples = []
    for index, num_tokens in enumerate(lengths, start=1):
        repeats = _NUM_REPEATS.get(num_tokens, 1)
        duration_s = min(measures.prefill_s(num_tokens) for _ in range(repeats))
        samples.append(ProfileSample(num_tokens, 0, duration_s))
        logger.info(
            "FlowPrefill: profile %d/%d: %d tokens in %.3f s",
            index,
            len(lengths),
            num_tokens,
            duration_s,
        )
    return samples, operators


def _cache_path(key: Mapping[str, str], cache_dir: Path) -> Path:
    digest = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:16]
    return cache_dir / f"prefill-{digest}.json"


def _read(path: Path, key: Mapping[str, str]) -> _CachedProfile | None:
    try:
        cached = msgspec.json.decode(path.read_bytes(), type=_CachedProfile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("FlowPrefill: measuring again, %s is unusable: %s", path, error)
        return None
    is_current = cached.format_version == _FORMAT_VERSION and cached.key == dict(key)
    return cached if is_current and _is_plausible(cached) else None


def _is_plausible(cached: _CachedProfile) -> bool:
    return (
        len(cached.samples) >= 3
        and all(s.duration_s > 0 and s.num_uncached_tokens > 0 for s in cached.samples)
        and all(row_s > 0 for row_s in cached.operator_seconds_per_row.values())
    )


def _write(path: Path, profile: _CachedProfile) -> None:
    """Replace the file in one step; a failure costs only the next start-up's time."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.encode(profile))
        partial.replace(path)
    except OSError as error:
        logger.warning("FlowPrefill: the measured profile is not cached: %s", error)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, 'unknown')} x {os.cpu_count()}"


def profile_key(model_runner: Any, max_chunk_tokens: int | None, num_ranks: int) -> dict[str, str]:
    """Describe what prefill times depend on, apart from the machine.

    Args:
        model_runner: SGLang's ``ModelRunner``.
        max_chunk_tokens: Tokens of a forward pass at most.
        num_ranks: Tensor-parallel size.
    """
    config = model_runner.model_config
    native = load_native() if str(model_runner.device) == "cpu" else None
    return {
        "kernels": "torch" if native is None else native.version,
        "chunk": str(None if max_chunk_tokens is None else min(max_chunk_tokens, _LENGTHS[-1])),
        "model": str(config.model_path),
        "architecture": str(config.hf_config.architectures),
        "num_parameters": str(sum(p.numel() for p in model_runner.model.parameters())),
        "dtype": str(model_runner.dtype),
        "device": str(model_runner.device),
        "num_ranks": str(num_ranks),
        "attention_backend": type(model_runner.attn_backend).__name__,
    }
