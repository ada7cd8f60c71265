"""The compiled CPU kernels: built once by the machine's own compiler, called through ctypes.

One source is compiled for the best of the targets below that the processor has. The library is
built at first use into this package's cache folder, under the hash of its source and flags; that
takes some seconds. Without a compiler, or on a processor with none of the targets, ``load_native``
returns None and callers keep their plain torch code, which is tiled too. ctypes instead of a torch
extension: a C interface needs no torch headers (half a minute to compile) and no agreement with
torch's C++ ABI.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch

from sglang_flowprefill.cache import cache_folder, replacing, require_trusted

logger = logging.getLogger(__name__)

TARGET_VARIABLE: Final = "SGLANG_FLOWPREFILL_CPU_KERNELS"
"""Name of a target, or ``torch`` for none; the best one if unset."""

_FOLDER: Final = Path(__file__).parent
_SOURCES: Final = ("attention.cpp", "elementwise.cpp", "kv_write.cpp", "linear.cpp")
_HEADERS: Final = ("simd.h",)
_FLAGS: Final = ("-O3", "-std=c++17", "-ffp-contract=fast", "-fPIC", "-shared", "-fopenmp")
_BUILD_TIMEOUT_S: Final = 120.0
_NO_TARGET: Final = "torch"

DIM_MULTIPLE: Final = 16
"""Head dimensions and widths that the kernels take are multiples of this."""
MAX_GROUP: Final = 1024
"""Query heads that may share a KV head."""

_NAMES: Final = {torch.bfloat16: "bf16", torch.float32: "f32"}
# p: pointer, i: int64, f: float
_CACHE: Final = "pipipipipi"  # query, output, keys, values and slot table; strides
_SIGNATURES_BY_DTYPE: Final = {
    "prefill": f"{_CACHE}piiiifi",
    "decode": f"{_CACHE}ppiiiifi",
    "add_rms_norm": "ppppiifi",
    "silu_and_mul": "ppii",
    "rope": "ppiipiipii",
}
_SIGNATURES: Final = {
    **{f"{f}_{name}": s for f, s in _SIGNATURES_BY_DTYPE.items() for name in _NAMES.values()},
    "write_kv": "pipipipipii",
    "pack_linear": "piip",
    "linear": "pipppiii",
}
_C_TYPES: Final = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


@dataclass(frozen=True, slots=True)
class Target:
    """Processors that one build is for.

    Attributes:
        name: As ``TARGET_VARIABLE`` gives it.
        flags: For the compiler.
        features: What the processor needs, by Linux names.
    """

    name: str
    flags: tuple[str, ...]
    features: frozenset[str]


@dataclass(frozen=True, slots=True)
class PagedKv:
    """The KV cache of one layer, and where each sequence's positions lie in it.

    Attributes:
        keys: ``[num_slots, num_kv_heads, dim]``.
        values: ``[num_slots, num_kv_heads, value_dim]``.
        table: ``[num_rows, max_positions]`` int32: the slot of every position of a sequence.
    """

    keys: torch.Tensor
    values: torch.Tensor
    table: torch.Tensor


_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
TARGETS: Final = (
    Target(
        "avx512_bf16",
        (*(f"-m{name}" for name in _AVX512), "-mavx512bf16", "-mfma"),
        frozenset({*_AVX512, "avx512_bf16", "fma"}),
    ),
    Target("avx2", ("-mavx2", "-mfma", "-Wno-psabi"), frozenset({"avx2", "fma"})),
)
"""Best first."""


class NativeKernels:
    """The compiled functions on torch tensors, all of them on the CPU.

    Args:
        library: The loaded shared library.
        version: Tells builds apart.
    """

    def __init__(self, library: ctypes.CDLL, version: str) -> None:
        self.version = version
        for name, signature in _SIGNATURES.items():
            function = getattr(library, f"flowprefill_{name}")
            function.argtypes = [_C_TYPES[letter] for letter in signature]
            function.restype = None
            setattr(self, f"_{name}", function)

    def prefill_attention(
        self,
        query: torch.Tensor,
        cache: PagedKv,
        pieces: torch.Tensor,
        output: torch.Tensor,
        *,
        scale: float,
        window_size: int | None = None,
    ) -> None:
        """Causal attention of pieces of sequences over the paged cache, which is read in place.

        Args:
            query: ``[num_tokens, num_heads, dim]`` bfloat16 or float32, contiguous in a token.
            cache: Keys and values of the same dtype and dimension, contiguous in a slot.
            pieces: ``[num_pieces, 4]`` int64: row of the table, first row of ``query``, number of
                rows, position of the first.
            output: Same shape as ``query``; these rows are written in place, never read.
            scale: Factor on the scores.
            window_size: A query sees this many positions before its own; None: all.
        """
        getattr(self, f"_prefill_{_NAMES[query.dtype]}")(
            *_addresses(query, output, cache),
            pieces.data_ptr(),
            pieces.shape[0],
            *_shape(query, cache, scale, window_size),
        )

    def decode_attention(
        self,
        query: torch.Tensor,
        cache: PagedKv,
        output: torch.Tensor,
        *,
        table_rows: torch.Tensor,
        num_keys: torch.Tensor,
        scale: float,
        window_size: int | None = None,
    ) -> None:
        """Attention of the last position of each sequence; long contexts are divided by keys.

        A sequence's result does not depend on the others, to the last bit.

        Args:
            query: ``[num_sequences, num_heads, dim]``, otherwise as for prefill.
            cache: As for prefill.
            output: Same shape as ``query``; written in place.
            table_rows: ``[num_sequences]`` int64, contiguous: rows of the table.
            num_keys: ``[num_sequences]`` int64, contiguous: positions, the last one's included.
            scale: Factor on the scores.
            window_size: As for prefill.
        """
        getattr(self, f"_decode_{_NAMES[query.dtype]}")(
            *_addresses(query, output, cache),
            table_rows.data_ptr(),
            num_keys.data_ptr(),
            query.shape[0],
            *_shape(query, cache, scale, window_size),
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
            x: ``[num_tokens, width]`` bfloat16 or float32, contiguous; width a multiple of 16.
            residual: Same shape and dtype, or None.
            weight: ``[width]``, same dtype.
            epsilon: Added to the mean square.
            rounds_first: Round to bfloat16 before multiplying with the weight.
        """
        output = torch.empty_like(x)
        getattr(self, f"_add_rms_norm_{_NAMES[x.dtype]}")(
            x.data_ptr(),
            None if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            output.data_ptr(),
            *x.shape,
            epsilon,
            rounds_first,
        )
        return output

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``silu(x[:, :width]) * x[:, width:]``; bfloat16 or float32, contiguous."""
        num_tokens, width = x.shape[0], x.shape[1] // 2
        output = x.new_empty((num_tokens, width))
        getattr(self, f"_silu_and_mul_{_NAMES[x.dtype]}")(
            x.data_ptr(), output.data_ptr(), num_tokens, width
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
            positions: ``[num_tokens]`` int64, contiguous.
            query: ``[num_tokens, num_heads * dim]`` bfloat16 or float32, contiguous within a token.
            key: ``[num_tokens, num_kv_heads * dim]``, likewise.
            cos_sin: ``[max_position, dim]``: cosines, then sines.
        """
        num_tokens, dim = positions.shape[0], cos_sin.shape[1]
        getattr(self, f"_rope_{_NAMES[query.dtype]}")(
            positions.data_ptr(),
            query.data_ptr(),
            query.stride(0),
            query.shape[1] // dim,
            key.data_ptr(),
            key.stride(0),
            key.shape[1] // dim,
            cos_sin.data_ptr(),
            num_tokens,
            dim,
        )

    def pack_linear(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a copy of a weight, laid out for ``linear``.

        Args:
            weight: ``[out_features, in_features]`` bfloat16, contiguous, one that
                ``can_multiply``.
        """
        packed = torch.empty_like(weight)
        self._pack_linear(  # type: ignore[attr-defined]
            weight.data_ptr(), *weight.shape, packed.data_ptr()
        )
        return packed

    def linear(
        self, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return ``x @ weight.T + bias``; a row's result does not depend on the other rows.

        Args:
            x: ``[num_rows, in_features]`` bfloat16, contiguous within a row.
            packed: From ``pack_linear``, with the shape of the weight.
            bias: ``[out_features]`` bfloat16, contiguous, or None.
        """
        num_rows, (out_features, in_features) = x.shape[0], packed.shape
        output = x.new_empty((num_rows, out_features))
        self._linear(  # type: ignore[attr-defined]
            x.data_ptr(),
            x.stride(0),
            packed.data_ptr(),
            None if bias is None else bias.data_ptr(),
            output.data_ptr(),
            num_rows,
            in_features,
            out_features,
        )
        return output

    def write_kv(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        cached_keys: torch.Tensor,
        cached_values: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """Copy keys and values of new tokens to their slots; tensors that ``can_write_kv``.

        Args:
            keys: ``[num_tokens, num_kv_heads, dim]``, contiguous within a token.
            values: Likewise.
            cached_keys: ``[num_slots, num_kv_heads, dim]``; written in place.
            cached_values: Likewise.
            slots: ``[num_tokens]`` int64, contiguous, each below ``num_slots``: not checked.
        """
        arguments: list[int] = []
        for tensor in (keys, values, cached_keys, cached_values):
            arguments += (tensor.data_ptr(), tensor.stride(0) * tensor.element_size())
        row_bytes = keys.shape[1] * keys.shape[2] * keys.element_size()
        self._write_kv(  # type: ignore[attr-defined]
            *arguments, slots.data_ptr(), keys.shape[0], row_bytes
        )


def can_multiply(weight: torch.Tensor) -> bool:
    """Tell whether ``pack_linear`` takes this weight: dtype and widths."""
    return (
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.dim() == 2
        and weight.shape[0] % DIM_MULTIPLE == 0
        and weight.shape[1] % 2 == 0
    )


def can_write_kv(
    keys: torch.Tensor,
    values: torch.Tensor,
    cached_keys: torch.Tensor,
    cached_values: torch.Tensor,
    slots: torch.Tensor,
) -> bool:
    """Tell whether ``write_kv`` takes these: one dtype, equal rows, contiguous within each."""
    tensors = (keys, values, cached_keys, cached_values)
    return (
        keys.dim() == 3
        and keys.device.type == "cpu"
        and slots.dtype == torch.int64
        and slots.shape == (keys.shape[0],)
        and slots.is_contiguous()
        and keys.shape == values.shape
        and all(tensor.dtype == keys.dtype for tensor in tensors)
        and all(tensor.shape[1:] == keys.shape[1:] for tensor in tensors)
        and all(tensor.stride()[1:] == (keys.shape[2], 1) for tensor in tensors)
    )


def can_attend(query: torch.Tensor, cache: PagedKv) -> bool:
    """Tell whether compiled attention takes these tensors: dtype, layout, head dimension."""
    num_heads, dim = query.shape[1:]
    keys, values, table = cache.keys, cache.values, cache.table
    return (
        query.dtype == keys.dtype == values.dtype
        and query.dtype in _NAMES
        and query.device.type == "cpu"
        and dim % DIM_MULTIPLE == 0
        and values.shape == keys.shape
        and num_heads <= MAX_GROUP * keys.shape[1]
        and query.stride()[1:] == keys.stride()[1:] == values.stride()[1:] == (dim, 1)
        and table.dtype == torch.int32
        and table.stride(1) == 1
    )


@cache
def load_native(target_name: str | None = None) -> NativeKernels | None:
    """Return the compiled kernels, building them if needed; None where they cannot be had.

    The reason is logged once.

    Args:
        target_name: One of ``TARGETS``; None: what ``TARGET_VARIABLE`` says, or the best.
    """
    try:
        return build_native(target_name)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "FlowPrefill: CPU kernels run as plain torch code, which is slower: %s", error
        )
        return None


def build_native(target_name: str | None = None) -> NativeKernels:
    """Return the compiled kernels, building them if needed.

    Raises:
        OSError: The processor has no target, or there is no compiler, or nothing can be written.
        subprocess.SubprocessError: The compiler fails.
    """
    target = _choose(target_name or os.environ.get(TARGET_VARIABLE))
    path = _built_library(target)
    # torch is loaded already: its OpenMP runtime has the soname that the library asks for, so
    # that both share one thread pool.
    return NativeKernels(ctypes.CDLL(str(path)), path.stem)


def _choose(name: str | None) -> Target:
    """Raise OSError, as loading would, before a processor meets instructions it does not know."""
    if name == _NO_TARGET:
        raise OSError(f"{TARGET_VARIABLE} is {_NO_TARGET}")
    features = _cpu_features()
    candidates = [target for target in TARGETS if name in (None, "", target.name)]
    if not candidates:
        known = ", ".join([*(target.name for target in TARGETS), _NO_TARGET])
        raise OSError(f"{TARGET_VARIABLE} is {name!r}; known are {known}")
    for target in candidates:
        if target.features <= features:
            return target
    missing = sorted(candidates[-1].features - features)
    raise OSError(f"this processor lacks {', '.join(missing)} for {candidates[-1].name}")


def has_amx() -> bool:
    """Tell whether this processor multiplies tiles of bfloat16, which these kernels do not use."""
    return "amx_bf16" in _cpu_features()


@cache
def _cpu_features() -> frozenset[str]:
    """Return the processor's features by their Linux names; empty where they are not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(flags, "").split())


def _built_library(target: Target) -> Path:
    compiler = (
        shlex.split(os.environ.get("CXX", ""))
        or [found for name in ("g++", "clang++") if (found := shutil.which(name))][:1]
    )
    if not compiler:
        raise FileNotFoundError("no C++ compiler (g++ or clang++) found")
    flags = (*_FLAGS, *target.flags)
    text = b"".join((_FOLDER / name).read_bytes() for name in (*_SOURCES, *_HEADERS))
    digest = hashlib.sha256(text + repr((flags, compiler)).encode()).hexdigest()[:16]
    library = cache_folder() / "kernels" / f"{target.name}-{digest}.so"
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_trusted(library.parent)  # its name can be guessed, and what it holds is run
    if not library.is_file():
        sources = [str(_FOLDER / name) for name in _SOURCES]
        with replacing(library) as written:
            subprocess.run(  # noqa: S603 (our own source, the user's compiler)
                [*compiler, *flags, *sources, "-o", str(written)],
                check=True,
                capture_output=True,
                timeout=_BUILD_TIMEOUT_S,
            )
    require_trusted(library)
    return library


def _addresses(query: torch.Tensor, output: torch.Tensor, cache: PagedKv) -> list[int]:
    arguments: list[int] = []
    for tensor in (query, output, cache.keys, cache.values, cache.table):
        arguments += (tensor.data_ptr(), tensor.stride(0))
    return arguments


def _shape(
    query: torch.Tensor, cache: PagedKv, scale: float, window_size: int | None
) -> tuple[int, int, int, float, int]:
    _, num_heads, dim = query.shape
    window = -1 if window_size is None else window_size
    return num_heads, cache.keys.shape[1], dim, scale, window
