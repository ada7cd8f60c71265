"""vLLM on the CPU: its command line and the OpenAI completions that it serves.

It runs in an environment of its own, ``.venv-peers/vllm`` beside this folder, which ``make peers``
creates. It gets what its documentation asks for on a CPU: all cores (its default leaves one
idle), Intel's OpenMP and tcmalloc.
"""

import ctypes.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import UsageError
from bench.systems.client import get_json
from bench.systems.engine import (
    HOST,
    GenerateRequest,
    Launch,
    ServerOptions,
    StreamError,
    StreamState,
)
from sglang_flowprefill.cpu.defaults import cores_by_rank
from sglang_flowprefill.cpu.embedded_model import embedded_model_path

_ENVIRONMENT = Path(__file__).parents[2] / ".venv-peers" / "vllm"
_OPENMP = "lib/libiomp5.so"
_ALLOCATOR = "tcmalloc_minimal"
_PRIORITIES = ("--scheduling-policy", "priority")
_DEVICE = "cpu"  # the one that the installed build runs on


@dataclass(frozen=True, slots=True)
class Vllm:
    """vLLM for the CPU.

    Attributes:
        sends_priority: Whether requests carry a priority, which a server without
            ``--scheduling-policy priority`` refuses.
    """

    sends_priority: bool = False

    @property
    def chunk_flag(self) -> str:
        """The budget of a step, which one prompt alone on the server fills."""
        return "--max-num-batched-tokens"

    def speaking_as(self, flags: Sequence[str]) -> "Vllm":
        """With priorities, if it is started so that it takes them."""
        return Vllm(sends_priority=_PRIORITIES in pairwise(flags))

    def launch(self, options: ServerOptions, flags: Sequence[str], port: int) -> Launch:
        """Start it from its own environment; the model's own context is its limit."""
        if options.device != _DEVICE:
            raise UsageError(f"vllm is set up as a peer on the CPU only, not on {options.device}")
        model_path = options.model_path or str(embedded_model_path(options.dtype or "bfloat16"))
        caching = "--enable-prefix-caching" if options.use_prefix_cache else None
        arguments = ["--host", HOST, "--port", str(port), "--enable-prompt-tokens-details"]
        arguments += ["--dtype", options.dtype] if options.dtype else []
        arguments += [caching or "--no-enable-prefix-caching", *flags]
        cores = cores_by_rank(sorted(os.sched_getaffinity(0)), num_ranks=1)
        variables = {
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB: 93,000 tokens of the embedded model
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "VLLM_NO_USAGE_STATS": "1",
            "LD_PRELOAD": _preloaded(),
        }
        if Path(model_path).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        return Launch((str(_ENVIRONMENT / "bin/vllm"), "serve", model_path, *arguments), variables)

    def encode(
        self,
        prompt: Sequence[int],
        num_output_tokens: int,
        *,
        slo_ttft_s: float | None = None,
        slo_class: str | None = None,  # noqa: ARG002 (vLLM knows no classes)
        slo_tpot_s: float | None = None,  # noqa: ARG002 (nor this objective)
    ) -> GenerateRequest:
        """Tell the objective as priority: fewer milliseconds, served earlier."""
        body: dict[str, Any] = {
            "prompt": list(prompt),
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "max_tokens": num_output_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
        }
        if self.sends_priority and slo_ttft_s is not None:
            body["priority"] = round(slo_ttft_s * 1000)
        headers = {"content-type": "application/json"}
        return GenerateRequest("/v1/completions", json.dumps(body).encode(), headers)

    def read(self, chunk: Mapping[str, Any]) -> StreamState:
        """Read ``usage``, which each line carries."""
        if "error" in chunk:
            raise StreamError(f"server error: {chunk['error']}")
        usage = chunk.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        return StreamState(int(usage.get("completion_tokens", 0)), details.get("cached_tokens"))

    async def info(self, session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
        """Ask for version and context; the rest is in its command line and its log."""
        version = await get_json(session, f"{url}/version")
        (model,) = (await get_json(session, f"{url}/v1/models"))["data"]
        return {**version, "device": _DEVICE, "max_model_len": model["max_model_len"]}


def _preloaded() -> str:
    """Return the libraries that vLLM's documentation asks to load first.

    Raises:
        UsageError: The environment or a library is missing.
    """
    openmp = _ENVIRONMENT / _OPENMP
    if not openmp.exists():
        raise UsageError("vllm is not installed; run make peers, or leave it out of --systems")
    allocator = ctypes.util.find_library(_ALLOCATOR)
    if allocator is None:
        raise UsageError(
            f"lib{_ALLOCATOR} is not installed, without which vllm would be handicapped; on "
            "Debian: apt-get install libtcmalloc-minimal4"
        )
    return f"{openmp}:{allocator}"


VLLM = Vllm()
