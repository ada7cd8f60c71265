"""The compiled CPU kernels: built once by the machine's own compiler, called through ctypes.

The library is built at first use into this package's cache folder, under the hash of its source
and flags; building takes two seconds. Without a compiler, or on a processor without AVX-512
BF16, ``load_native`` returns None and callers keep their plain torch code, which is tiled too.
ctypes instead of a torch extension: a C interface needs no torch headers (half a minute to
compile) and no agreement with torch's C++ ABI.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import torch

from sglang_flowprefill.cache import cache_folder

logger = logging.getLogger(__name__)

_SOURCE: Final = Path(__file__).with_name("avx512_bf16.cpp")
_FLAGS: Final = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"),
)
_FEATURES: Final = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "fma"})
_BUILD_TIMEOUT_S: Final = 120.0

DIM_MULTIPLE: Final = 64
"""Head dimensions that attention takes are multiples of this; widths of the others of 16."""


class NativeKernels:
    """The functions of ``avx512_bf16.cpp`` on torch tensors. All tensors are bfloat16 on the CPU.

    Args:
        library: The loaded shared library.
        version: Tells builds apart.
    """

    def __init__(self, library: ctypes.CDLL, version: str) -> None:
        self.version = version
        library.flowprefill_packed_size.restype = ctypes.c_int64
        self._library = library

    def pack_kv(
        self, key_cache: torch.Tensor, value_cache: torch.Tensor, slots: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather one sequence from the paged cache into the layout of ``attend``.

        Args:
            key_cache: ``[num_slots, num_kv_heads, dim]``, contiguous within a slot.
            value_cache: Same shape.
            slots: ``[num_keys]`` slot of each position; any integer type.

        Returns:
            Packed keys and packed values, opaque.
        """
        slots = slots.to(torch.int64).contiguous()
        num_keys, (_, num_kv_heads, dim) = slots.shape[0], key_cache.shape
        size = self._library.flowprefill_packed_size(
            *map(ctypes.c_int64, (num_keys, num_kv_heads, dim))
        )
        keys, values = (
            torch.empty(size, dtype=torch.bfloat16),
            torch.empty(size, dtype=torch.bfloat16),
        )
        self._library.flowprefill_pack_kv(
            _pointer(key_cache),
            _pointer(value_cache),
            _pointer(slots),
            *map(ctypes.c_int64, (num_keys, num_kv_heads, dim)),
            ctypes.c_int64(key_cache.stride(0)),
            ctypes.c_int64(value_cache.stride(0)),
            _pointer(keys),
            _pointer(values),
        )
        return keys, values

    def attend(
        self,
        query: torch.Tensor,
        packed: tuple[torch.Tensor, torch.Tensor],
        output: torch.Tensor,
        *,
        num_kv_heads: int,
        first_position: int,
        num_keys: int,
        scale: float,
        window_size: int | None = None,
    ) -> None:
        """Causal attention of consecutive positions of one sequence over its packed keys.

        Args:
            query: ``[num_queries, num_heads, dim]``, contiguous within a token.
            packed: From ``pack_kv``.
            output: Same shape; written in place.
            num_kv_heads: Divides ``num_heads``.
            first_position: Position of the first query.
            num_keys: Positions that were packed.
            scale: Factor on the scores.
            window_size: A query sees this many positions before its own; None: all.
        """
        num_queries, num_heads, dim = query.shape
        self._library.flowprefill_attend(
            _pointer(query),
            ctypes.c_int64(query.stride(0)),
            _pointer(output),
            ctypes.c_int64(output.stride(0)),
            _pointer(packed[0]),
            _pointer(packed[1]),
            *map(ctypes.c_int64, (num_heads, num_kv_heads, dim)),
            *map(ctypes.c_int64, (first_position, num_queries, num_keys)),
            ctypes.c_float(scale),
            ctypes.c_int64(-1 if window_size is None else window_size),
        )

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        epsilon: float,
        *,
        rounds_first: bool,
    ) -> torch.Tensor:
        """Return ``weight * rms_norm(x + residual)``; the sum replaces ``residual`` in place.

        Args:
            x: ``[num_tokens, width]``, contiguous; width a multiple of 16.
            residual: Same shape, or None.
            weight: ``[width]``.
            epsilon: Added to the mean square.
            rounds_first: Round to bfloat16 before multiplying with the weight.
        """
        output = torch.empty_like(x)
        self._library.flowprefill_add_rms_norm(
            _pointer(x),
            None if residual is None else _pointer(residual),
            _pointer(weight),
            _pointer(output),
            ctypes.c_int64(x.shape[0]),
            ctypes.c_int64(x.shape[1]),
            ctypes.c_float(epsilon),
            ctypes.c_int(rounds_first),
        )
        return output

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``silu(x[:, :width]) * x[:, width:]``; x is contiguous."""
        num_tokens, width = x.shape[0], x.shape[1] // 2
        output = torch.empty((num_tokens, width), dtype=x.dtype)
        self._library.flowprefill_silu_and_mul(
            _pointer(x), _pointer(output), ctypes.c_int64(num_tokens), ctypes.c_int64(width)
        )
        return output

    def rope_(
        self,
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        cos_sin: torch.Tensor,
    ) -> None:
        """Rotate query and key in place (Neox style, whole head).

        Args:
            positions: ``[num_tokens]`` int64.
            query: ``[num_tokens, num_heads * dim]``, contiguous within a token.
            key: ``[num_tokens, num_kv_heads * dim]``, likewise.
            cos_sin: ``[max_position, dim]``: cosines, then sines.
        """
        num_tokens, dim = positions.shape[0], cos_sin.shape[1]
        self._library.flowprefill_rope(
            _pointer(positions),
            _pointer(query),
            ctypes.c_int64(query.stride(0)),
            ctypes.c_int64(query.shape[1] // dim),
            _pointer(key),
            ctypes.c_int64(key.stride(0)),
            ctypes.c_int64(key.shape[1] // dim),
            _pointer(cos_sin),
            ctypes.c_int64(num_tokens),
            ctypes.c_int64(dim),
        )


@cache
def load_native() -> NativeKernels | None:
    """Return the compiled kernels, building them if needed; None where they cannot be had.

    The reason is logged once.
    """
    try:
        _require_features()
        path = _built_library()
        # torch is loaded already: its OpenMP runtime has the soname that the library asks for,
        # so that both share one thread pool.
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "FlowPrefill: CPU kernels run as plain torch code, which is slower: %s", error
        )
        return None
    return NativeKernels(library, path.stem)


def _require_features() -> None:
    """Raise OSError, as loading would, before a processor meets instructions it does not know."""
    if missing := sorted(_FEATURES - _cpu_features()):
        raise OSError(f"this processor lacks {', '.join(missing)}")


def _cpu_features() -> frozenset[str]:
    """Return the processor's features by their Linux names; empty where they are not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(flags, "").split())


def _built_library() -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler (g++ or clang++) found")
    source = _SOURCE.read_bytes()
    digest = hashlib.sha256(source + repr((_FLAGS, compiler)).encode()).hexdigest()[:16]
    library = cache_folder() / "kernels" / f"avx512_bf16-{digest}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}.partial")
        subprocess.run(  # noqa: S603 (our own source, the user's compiler)
            [compiler, *_FLAGS, str(_SOURCE), "-o", str(partial)],
            check=True,
            capture_output=True,
            timeout=_BUILD_TIMEOUT_S,
        )
        partial.replace(library)
    return library


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
