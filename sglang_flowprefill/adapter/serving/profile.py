"""Start-up profile: how long prefills and their operators take here, kept on disk.

Prompts of several lengths, a few after a cached prefix, and a few batches of short ones, so that
every coefficient of the predictor is measured. The cache key is everything the times depend on
and that can be told at start-up: model, dtype, device, attention backend, threads, versions. A
cache that cannot be read is measured again.
"""

import hashlib
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from rich.console import Console
from rich.progress import track

from sglang_flowprefill.adapter.releases import installed_version
from sglang_flowprefill.cache import cache_folder, replacing
from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.errors import ProfileError
from sglang_flowprefill.executor import (
    PrefillShape,
    ProfileSample,
    Ranks,
    fit_prefill_cost,
    saturation_tokens,
)
from sglang_flowprefill.kernels.cpu.native import load_native

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 3
_LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SHAPES = (
    *map(PrefillShape, _LENGTHS),
    *(PrefillShape(n, 0, k) for n, k in ((16, 8), (64, 4), (64, 8), (256, 4))),
    *(PrefillShape(n, p) for n, p in ((64, 1024), (256, 1024), (256, 2048))),
)
_MAX_REPEATED_TOKENS = 1536
"""Longer shapes run once, their relative noise being small."""
_OPERATOR_LENGTH = 512


class Measures(Protocol):
    """What runs prefills to be timed."""

    def prefill_s(self, shape: PrefillShape) -> float:
        """Run one prefill of this shape and return its seconds."""
        ...

    def operator_seconds_per_row(self, num_tokens: int) -> dict[str, float]:
        """Run one prefill and return how long its operators took per row, by family."""
        ...


@dataclass(frozen=True, slots=True)
class PrefillLimits:
    """What fits into the engine at once.

    Attributes:
        max_tokens: KV slots that a measurement may use.
        max_requests: Sequences of a batch.
    """

    max_tokens: int
    max_requests: int

    def allow(self, shape: PrefillShape) -> bool:
        """Tell whether a shape fits."""
        return _num_tokens(shape) <= self.max_tokens and shape.num_requests <= self.max_requests


class StoredProfile(msgspec.Struct, forbid_unknown_fields=True):
    """A profile as it is kept on disk.

    Attributes:
        format_version: Of this record.
        key: What the times depend on.
        samples: Measured prefills.
        operator_seconds_per_row: As in ``Profile``.
    """

    format_version: int
    key: dict[str, str]
    samples: list[ProfileSample]
    operator_seconds_per_row: dict[str, float]


@dataclass(frozen=True, slots=True)
class Profile:
    """What a machine takes for one model.

    Attributes:
        cost: Predictor of whole prefills.
        saturation_tokens: Tokens of a batch beyond which throughput hardly grows.
        operator_seconds_per_row: Seconds per token of norms, linear layers and MLPs, by family.
        path: Where it is kept.
    """

    cost: PrefillCost
    saturation_tokens: int
    operator_seconds_per_row: Mapping[str, float]
    path: Path


def prefill_profile(
    key: Mapping[str, str],
    limits: PrefillLimits,
    measures: Measures,
    cache_dir: str | None,
    ranks: Ranks,
    *,
    measures_again: bool,
) -> Profile:
    """Return the profile of this machine and model, from the cache or by measuring now.

    Args:
        key: What the times depend on.
        limits: What may be measured.
        measures: Runs prefills.
        cache_dir: Folder of cached profiles, None for the default one.
        ranks: All measure or none does, and all take the leader's times: they decide where the
            tiles lie.
        measures_again: Measure whatever the cache says, and replace it.
    """
    key = {**key, **machine_key()}
    path = _cache_path(key, profile_folder(cache_dir))
    stored = ranks.agree(lambda: None if measures_again else _read(path, key))
    if stored is None:
        is_shown = ranks.is_leader and sys.stderr.isatty()
        measured = _measure(limits, measures, is_shown=is_shown)
        own = StoredProfile(_FORMAT_VERSION, dict(key), *measured)
        stored = ranks.agree(lambda: own)
        if ranks.is_leader:
            _write(path, stored)
    cost, num_saturating = fit_prefill_cost(stored.samples), saturation_tokens(stored.samples)
    logger.info(
        "FlowPrefill: prefill of n tokens predicted as %.1f ms + %.3f ms n + %.3f us n^2/2, "
        "%.2f ms for each sequence; throughput saturates at %d tokens",
        cost.base_s * 1e3,
        cost.per_token_s * 1e3,
        cost.per_attention_pair_s * 1e6,
        cost.per_request_s * 1e3,
        num_saturating,
    )
    return Profile(cost, num_saturating, stored.operator_seconds_per_row, path)


def profile_folder(cache_dir: str | None) -> Path:
    """Return where profiles are kept, given the server's setting."""
    return Path(cache_dir) if cache_dir else cache_folder() / "profiles"


def machine_key() -> dict[str, str]:
    """Describe this machine, as far as prefill times depend on it."""
    return {
        "machine": platform.processor() or platform.machine(),
        "cpu": _cpu_model(),
        "num_threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": str(torch.__version__),
        "sglang": installed_version(),
    }


def read_profile(path: Path) -> StoredProfile:
    """Read a stored profile, whatever it is of.

    Raises:
        ProfileError: The file is missing or no profile.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=StoredProfile)
    except (OSError, msgspec.DecodeError) as error:
        raise ProfileError(f"cannot read the measured profile {path}: {error}") from error


def read_samples(path: Path) -> list[ProfileSample]:
    """Read the measured prefills of a profile.

    Raises:
        ProfileError: The file is missing or no profile.
    """
    return read_profile(path).samples


def _measure(
    limits: PrefillLimits, measures: Measures, *, is_shown: bool
) -> tuple[list[ProfileSample], dict[str, float]]:
    shapes = [shape for shape in _SHAPES if limits.allow(shape)]
    logger.info("FlowPrefill: measuring %d kinds of prefills (once; cached)", len(shapes))
    operators = measures.operator_seconds_per_row(min(_OPERATOR_LENGTH, limits.max_tokens))
    samples = []
    for shape in _with_progress(shapes, is_shown=is_shown):
        duration_s = min(measures.prefill_s(shape) for _ in range(_num_repeats(shape)))
        samples.append(ProfileSample(shape, duration_s))
        logger.info("FlowPrefill: profile: %s in %.3f s", shape, duration_s)
    return samples, operators


def _with_progress(shapes: Sequence[PrefillShape], *, is_shown: bool) -> Any:
    return track(
        shapes,
        "FlowPrefill: measuring prefill costs",
        console=Console(stderr=True),
        disable=not is_shown,
    )


def _num_tokens(shape: PrefillShape) -> int:
    return shape.num_requests * (shape.num_uncached_tokens + shape.num_cached_tokens)


def _num_repeats(shape: PrefillShape) -> int:
    """The fastest run counts: other processes only ever add to it."""
    num_tokens = _num_tokens(shape)
    if num_tokens <= 64:
        return 5
    if num_tokens <= 512:
        return 3
    return 2 if num_tokens <= _MAX_REPEATED_TOKENS else 1


def _cache_path(key: Mapping[str, str], cache_dir: Path) -> Path:
    digest = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:16]
    return cache_dir / f"prefill-{digest}.json"


def _read(path: Path, key: Mapping[str, str]) -> StoredProfile | None:
    try:
        cached = msgspec.json.decode(path.read_bytes(), type=StoredProfile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("FlowPrefill: measuring again, %s is unusable: %s", path, error)
        return None
    return cached if cached.key == dict(key) and is_usable(cached) else None


def is_usable(cached: StoredProfile) -> bool:
    """Tell whether a stored profile is of today's form and can have been measured."""
    return (
        cached.format_version == _FORMAT_VERSION
        and len(cached.samples) >= 3
        and all(s.duration_s > 0 and min(s.shape.terms[:3]) > 0 for s in cached.samples)
        and all(row_s > 0 for row_s in cached.operator_seconds_per_row.values())
    )


def _write(path: Path, profile: StoredProfile) -> None:
    """Replace the file in one step; a failure costs only the next start-up's time."""
    try:
        with replacing(path) as written:
            written.write_bytes(msgspec.json.encode(profile))
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
