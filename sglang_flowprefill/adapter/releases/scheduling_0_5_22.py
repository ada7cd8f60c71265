"""The scheduler's names in SGLang 0.5.22: as in 0.5.23, but for the answer to an abort."""

from typing import Any

from sglang.srt.managers.scheduler import Scheduler as UpstreamScheduler

from sglang_flowprefill.adapter.releases.scheduling_0_5_23 import (
    ASKS_LM_HEAD_METHOD,
    NORMS,
    PrefillAdder,
    TorchNativeAttnBackend,
    data_parallel_rank,
    forward_flags,
    is_health_check_generate_req,
    is_metrics_enabled,
    make_abort_req,
    release_uncached,
    set_forward_context,
    tile_flashinfer,
    token_ids,
)

__all__ = [
    "ASKS_LM_HEAD_METHOD",
    "NORMS",
    "PrefillAdder",
    "Scheduler",
    "TorchNativeAttnBackend",
    "data_parallel_rank",
    "forward_flags",
    "is_health_check_generate_req",
    "is_metrics_enabled",
    "make_abort_req",
    "release_uncached",
    "set_forward_context",
    "tile_flashinfer",
    "token_ids",
]


class Scheduler(UpstreamScheduler):
    """SGLang's scheduler with a name for what it does in place."""

    def send_abort_output(self, abort_req: Any, req: Any) -> None:
        """Answer a request that ends outside the output stream."""
        self.ipc_channels.send_to_tokenizer.send_output(abort_req, req)
