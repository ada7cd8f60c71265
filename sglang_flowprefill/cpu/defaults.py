"""What a machine without a GPU needs to be told, so that the user need not know it.

Pure functions: they read the machine and return values; the launcher applies them. Nothing here
imports torch or sglang, because environment variables must be set before either is loaded.
"""

import ctypes
import os
from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

CPU_ENGINE_VARIABLE: Final = "SGLANG_USE_CPU_ENGINE"

_DEVICES: Final = Path("/dev")
# Device files of the kernel drivers of NVIDIA, WSL and Tegra.
_CUDA_DEVICES: Final = ("nvidia*", "dxg", "nvgpu", "nvhost-gpu")
_ROCM_DEVICE: Final = "kfd"

# Flag and value; None for a switch.
_SERVER_DEFAULTS: Final[tuple[tuple[str, str | None], ...]] = (
    ("--device", "cpu"),
    # The one attention backend of SGLang that needs neither a GPU nor Intel AMX.
    ("--attention-backend", "torch_native"),
    # Of all RAM, for weights and KV cache together: an upper bound that leaves room for the
    # other processes and for activations. What is really taken is set by the next line.
    ("--mem-fraction-static", "0.7"),
    # SGLang would otherwise fill that whole fraction with KV cache, and touch every page of it
    # at start-up. 32,768 tokens are four times the context of the embedded model, whose cache
    # then takes 0.75 GB (23 KB a token); at 128 KB a token, an 8B model's takes 4.3 GB.
    ("--max-total-tokens", "32768"),
    # An idle scheduler polls without pause, which on a GPU machine costs one core of many.
    ("--sleep-on-idle", None),
    # Seconds for one forward, after which SGLang takes itself for hung and exits. Its 300 s are
    # meant for a GPU; a long prompt on two busy cores takes minutes and is not a hang.
    ("--watchdog-timeout", "3600"),
)


def is_cpu_only() -> bool:
    """Tell whether SGLang should run on the CPU engine here.

    ``SGLANG_USE_CPU_ENGINE`` decides if it is set, ``1`` meaning yes. Otherwise the answer is
    yes for a CPU build of torch and for a machine on which no GPU driver is loaded. The driver
    is asked nothing, because initialising CUDA here would break processes forked later.
    """
    chosen = os.environ.get(CPU_ENGINE_VARIABLE)
    if chosen:
        return chosen == "1"
    return _is_torch_built_for_cpu() or not _has_gpu_driver()


def cpu_environment(model_path: str | None = None, num_ranks: int = 1) -> dict[str, str]:
    """Return the environment variables to default before SGLang is imported.

    Meant for ``os.environ.setdefault``: what the user exported wins.

    Args:
        model_path: As given to SGLang. For a folder the hub is switched off, since nothing has
            to be fetched, and every look-up of an optional file would cost a time-out on a
            machine without a network. A hub name, or None, leaves the hub alone.
        num_ranks: Tensor-parallel size times replicas. They share this process's cores evenly.
    """
    environment = {
        CPU_ENGINE_VARIABLE: "1",
        # Rounds that an OpenMP thread waiting for the others spins before it sleeps. GNU's
        # default of 300,000 keeps the core from whatever else wants it, the very thread waited
        # for included. On two cores beside one busy process, a chain of GEMMs over 512 tokens
        # took about 0.75 s without this and 0.55 s with it; alone there was no difference.
        # Sleeping at once (OMP_WAIT_POLICY=passive) made single-token steps a third slower.
        # On a machine to itself 30,000 is quicker for short prompts (median of 32 tokens 48 to 52
        # ms against 59 to 65), but beside one busy process 512 tokens took 1.2 s against 0.7.
        "GOMP_SPINCOUNT": "3000",
        # Bytes from which glibc asks the kernel for each block of its own, and free bytes from
        # which it gives memory back. By default both follow the largest block freed so far; row
        # tiles make that small, and activations are then given back and faulted in again in every
        # layer: 59,000 page faults in a prefill of 2,048 tokens, 190 ms of 2.2 s within the kernel
        # instead of 30. 32 MB is the most that glibc takes.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
        # When a rank dies while another lives, SGLang waits a minute for CUDA core dumps before it
        # ends the server.
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
    }
    if model_path is not None and Path(model_path).expanduser().is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if num_ranks > 1:
        cores = sorted(os.sched_getaffinity(0))
        # SGLang binds by this where it has AMX or ARM kernels, and refuses more ranks than NUMA
        # nodes without it. Elsewhere torch reads its number of threads from the second.
        environment["SGLANG_CPU_OMP_THREADS_BIND"] = cores_by_rank(cores, num_ranks)
        environment["OMP_NUM_THREADS"] = str(max(1, len(cores) // num_ranks))
    return environment


def cores_by_rank(cores: Sequence[int], num_ranks: int) -> str:
    """Deal cores out to ranks, neighbours together, in the notation of SGLang.

    Remaining cores are left out, so that no rank waits for one with fewer. With more ranks than
    cores, several ranks share one.

    >>> cores_by_rank([0, 1, 2, 3, 4], 2)
    '0,1|2,3'
    >>> cores_by_rank([0, 1], 3)
    '0|1|0'
    """
    num_each = max(1, len(cores) // num_ranks)
    ranks = [
        [cores[(rank * num_each + index) % len(cores)] for index in range(num_each)]
        for rank in range(num_ranks)
    ]
    return "|".join(",".join(map(str, group)) for group in ranks)


def cpu_server_defaults(flags: Collection[str]) -> list[str]:
    """Return the arguments to append to SGLang's command line for the CPU engine.

    Args:
        flags: The user's arguments. A flag found among them, also as ``--flag=value`` or in
            the shortened form that argparse allows, is left to the user. Flags set in a file
            given with ``--config`` count only if the caller adds them here.

    >>> cpu_server_defaults(["--device", "cpu", "--attention=intel_amx", "--max-total", "9"])
    ['--mem-fraction-static', '0.7', '--sleep-on-idle', '--watchdog-timeout', '3600']
    """
    given = {flag.partition("=")[0] for flag in flags if flag.startswith("--")}
    given.discard("--")  # would be a shortened form of everything
    arguments: list[str] = []
    for flag, value in _SERVER_DEFAULTS:
        if not any(flag.startswith(shortened) for shortened in given):
            arguments += [flag] if value is None else [flag, value]
    return arguments


def _is_torch_built_for_cpu() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def _has_gpu_driver() -> bool:
    if (_DEVICES / _ROCM_DEVICE).exists():
        return True
    has_device = any(next(_DEVICES.glob(pattern), None) for pattern in _CUDA_DEVICES)
    return has_device and _loads("libcuda.so.1")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
