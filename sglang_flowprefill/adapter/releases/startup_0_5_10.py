"""Start-up names of SGLang 0.5.10.post1, which has no plugin system.

What stands in for one is ours: hooks that are set at once, and no discovery. The plugin is loaded
by our launcher in every process that it starts, or by the patch set in SGLang's own commands.
"""

from typing import Any

from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES

from sglang_flowprefill.adapter.releases.hook_registry import HookRegistry, HookType

__all__ = [
    "ALSO_REFUSED",
    "ATTENTION_BACKEND_CHOICES",
    "HAS_ABORT_HOOK",
    "MODEL_READY_METHOD",
    "SETTINGS_METHOD",
    "HookRegistry",
    "HookType",
    "load_plugins",
    "resolve",
    "switch_off_prefill_graphs",
]

SETTINGS_METHOD = "__post_init__"
MODEL_READY_METHOD = None
HAS_ABORT_HOOK = False
ALSO_REFUSED = {
    "enable_attn_tp_input_scattered": (
        "it keeps per-forward state that a suspended prefill would find overwritten"
    ),
    "tokenizer_worker_num": "its workers load no plugins: SLOs would be lost",
}


def load_plugins() -> None:
    """Load the one plugin that there is, ours."""
    from sglang_flowprefill.adapter.plugin import register  # noqa: PLC0415 (it imports us)

    register()


def switch_off_prefill_graphs(settings: Any) -> None:
    """Have prefills run eagerly: replayed graphs have no boundaries."""
    settings.disable_piecewise_cuda_graph = True


def resolve(settings: Any) -> None:
    """Do nothing: settings are complete when they are made."""
