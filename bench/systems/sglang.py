"""SGLang, with and without FlowPrefill: its command line and its ``/generate``."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

from bench.results.provenance import without_folders
from bench.systems.client import get_json
from bench.systems.engine import (
    HOST,
    GenerateRequest,
    Launch,
    ServerOptions,
    StreamError,
    StreamState,
)
from sglang_flowprefill.cpu.defaults import cpu_environment, cpu_server_defaults
from sglang_flowprefill.cpu.embedded_model import embedded_model_path
from sglang_flowprefill.enablement import ENABLE_VARIABLE, KERNELS_ONLY

# What of /server_info decides a measurement; the rest is hundreds of fields and machine paths.
_INFO_FIELDS = (
    "version",
    "model_path",
    "device",
    "dtype",
    "attention_backend",
    "chunked_prefill_size",
    "max_prefill_tokens",
    "disable_overlap_schedule",
    "disable_radix_cache",
    "schedule_policy",
    "sleep_on_idle",
    "mem_fraction_static",
    "max_total_tokens",
    "max_total_num_tokens",
    "tp_size",
)


_PRIORITIES = {"--enable-priority-scheduling", "--schedule-low-priority-values-first"}


@dataclass(frozen=True, slots=True)
class SGLang:
    """A way to start SGLang.

    Attributes:
        module: Run by ``python -m``.
        chunk_flag: As in ``Engine``.
        is_flowprefill: Whether FlowPrefill's variables and SLO classes may reach it.
        variables: That make it this engine.
        sends_priority: Whether requests carry a priority, the tighter the objective the lower.
    """

    module: str = "sglang.launch_server"
    chunk_flag: str = "--chunked-prefill-size"
    is_flowprefill: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    sends_priority: bool = False

    def speaking_as(self, flags: Sequence[str]) -> "SGLang":
        """With priorities, if it is started so that low values of them go first."""
        return replace(self, sends_priority=set(flags) >= _PRIORITIES)

    def launch(self, options: ServerOptions, flags: Sequence[str], port: int) -> Launch:
        """Start it with this package's CPU defaults, whoever's scheduler runs."""
        model_path = options.model_path or str(embedded_model_path(options.dtype or "bfloat16"))
        arguments = ["--model-path", model_path, "--host", HOST, "--port", str(port)]
        arguments += ["--device", options.device]
        arguments += ["--dtype", options.dtype] if options.dtype else []
        arguments += [] if options.use_prefix_cache else ["--disable-radix-cache"]
        if self.is_flowprefill and options.slo_config is not None:
            arguments += ["--flowprefill-slo-config", str(options.slo_config)]
        arguments += flags
        variables = dict(self.variables)
        if options.device == "cpu":
            arguments += cpu_server_defaults(arguments)
            defaults = cpu_environment(model_path)
            variables |= {name: os.environ.get(name, value) for name, value in defaults.items()}
        return Launch(
            command=(sys.executable, "-m", self.module, *arguments),
            variables=variables,
            keeps_switches=self.is_flowprefill,
        )

    def encode(
        self,
        prompt: Sequence[int],
        num_output_tokens: int,
        *,
        slo_ttft_s: float | None = None,
        slo_class: str | None = None,
        slo_tpot_s: float | None = None,
    ) -> GenerateRequest:
        """Tell the objective in FlowPrefill's headers, which stock SGLang ignores."""
        body: dict[str, Any] = {
            "input_ids": list(prompt),
            "stream": True,
            "sampling_params": {
                "max_new_tokens": num_output_tokens,
                "temperature": 0.0,
                "ignore_eos": True,
            },
        }
        headers = {"content-type": "application/json"}
        if self.sends_priority and slo_ttft_s is not None:
            body["priority"] = round(slo_ttft_s * 1000)
        if slo_ttft_s is not None:
            headers["x-slo-ttft-ms"] = str(max(1, round(slo_ttft_s * 1000)))
        if slo_tpot_s is not None:
            headers["x-slo-tpot-ms"] = str(max(1, round(slo_tpot_s * 1000)))
        if slo_class is not None:
            headers["x-slo-class"] = slo_class
        return GenerateRequest("/generate", json.dumps(body).encode(), headers)

    def read(self, chunk: Mapping[str, Any]) -> StreamState:
        """Read ``meta_info``; failures are streamed with HTTP status 200."""
        if "error" in chunk:
            raise StreamError(f"server error: {chunk['error']}")
        meta = chunk.get("meta_info", {})
        reason = meta.get("finish_reason") or {}
        if reason.get("type") == "abort":
            raise StreamError(f"aborted by the server: {reason.get('message', '')}")
        return StreamState(int(meta.get("completion_tokens", 0)), meta.get("cached_tokens"))

    async def info(self, session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
        """Pick from ``/server_info``."""
        info = await get_json(session, f"{url}/server_info")
        known = {key: info[key] for key in _INFO_FIELDS if key in info}
        return {
            key: without_folders([value])[0] if isinstance(value, str) else value
            for key, value in known.items()
        }


STOCK = SGLang()
STOCK_WITH_KERNELS = SGLang(variables={ENABLE_VARIABLE: KERNELS_ONLY})
FLOWPREFILL = SGLang(
    "sglang_flowprefill.launch_server", "--flowprefill-max-chunk-tokens", is_flowprefill=True
)
