"""Start-up profile: how long prefills of several lengths take here, kept on disk.

The cache key is everything the times depend on and that can be told at start-up: model, dtype,
device, attention backend, threads, versions. A cache that cannot be read is measured again.
"""

import hashlib
import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sglang_flowprefill.cache import cache_folder
from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.executor import ProfileSample, fit_prefill_cost
from sglang_flowprefill.kernels.cpu.native import load_native

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 1
_LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_NUM_REPEATS = {16: 5, 32: 5, 64: 5, 128: 3, 256: 3, 512: 3, 1024: 2}
"""The fastest run counts; longer prompts run once, their relative noise being small."""


class _CachedProfile(msgspec.Struct, forbid_unknown_fields=True):
    format_version: int
    key: dict[str, str]
    samples: list[ProfileSample]


def prefill_cost(
    key: Mapping[str, str],
    max_tokens: int,
    measure_s: Callable[[int], float],
    cache_dir: str | None,
) -> PrefillCost:
    """Return the fitted cost of prefills, from the cache or by measuring now.

    Args:
        key: What the times depend on.
        max_tokens: Longest prompt that may be measured.
        measure_s: Runs one prefill of that many tokens and returns its seconds.
        cache_dir: Folder of cached profiles, None for the default one.
    """
    key = {**key, "machine": platform.processor() or platform.machine(), "cpu": _cpu_model()}
    path = _cache_path(key, Path(cache_dir) if cache_dir else cache_folder() / "profiles")
    samples = _read(path, key)
    if samples is None:
        samples = _measure(max_tokens, measure_s)
        _write(path, _CachedProfile(_FORMAT_VERSION, dict(key), samples))
    cost = fit_prefill_cost(samples)
    logger.info(
        "FlowPrefill: prefill of n tokens predicted as %.1f ms + %.3f ms n + %.3f us n^2/2",
        cost.base_s * 1e3,
        cost.per_token_s * 1e3,
        cost.per_attention_pair_s * 1e6,
    )
    return cost


def _measure(max_tokens: int, measure_s: Callable[[int], float]) -> list[ProfileSample]:
    lengths = [n for n in _LENGTHS if n <= max_tokens]
    logger.info("FlowPrefill: measuring prefills of %s tokens (once; cached)", lengths)
    measure_s(lengths[0])  # warm up allocator and thread pool
    samples = []
    for index, num_tokens in enumerate(lengths, start=1):
        repeats = _NUM_REPEATS.get(num_tokens, 1)
        duration_s = min(measure_s(num_tokens) for _ in range(repeats))
        samples.append(ProfileSample(num_tokens, 0, duration_s))
        logger.info(
            "FlowPrefill: profile %d/%d: %d tokens in %.3f s",
            index,
            len(lengths),
            num_tokens,
            duration_s,
        )
    return samples


def _cache_path(key: Mapping[str, str], cache_dir: Path) -> Path:
    digest = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:16]
    return cache_dir / f"prefill-{digest}.json"


def _read(path: Path, key: Mapping[str, str]) -> list[ProfileSample] | None:
    try:
        cached = msgspec.json.decode(path.read_bytes(), type=_CachedProfile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("FlowPrefill: measuring again, %s is unusable: %s", path, error)
        return None
    is_current = cached.format_version == _FORMAT_VERSION and cached.key == dict(key)
    return cached.samples if is_current and _is_plausible(cached.samples) else None


def _is_plausible(samples: Iterable[ProfileSample]) -> bool:
    samples = list(samples)
    return len(samples) >= 3 and all(
        s.duration_s > 0 and s.num_uncached_tokens > 0 for s in samples
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


def profile_key(model_runner: Any) -> dict[str, str]:
    """Describe what prefill times depend on, apart from the machine."""
    config = model_runner.model_config
    native = load_native() if str(model_runner.device) == "cpu" else None
    return {
        "kernels": "torch" if native is None else native.version,
        "model": str(config.model_path),
        "architecture": str(config.hf_config.architectures),
        "num_parameters": str(sum(p.numel() for p in model_runner.model.parameters())),
        "dtype": str(model_runner.dtype),
        "device": str(model_runner.device),
        "attention_backend": type(model_runner.attn_backend).__name__,
    }
