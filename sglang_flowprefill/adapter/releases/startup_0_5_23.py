"""Start-up names of SGLang 0.5.22 and 0.5.23, which have a plugin system."""

from typing import Any

from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
from sglang.srt.environ import envs
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

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

SETTINGS_METHOD = "resolve_once"
"""Method of ``ServerArgs`` that completes what the user gave."""

MODEL_READY_METHOD = "init_attention_backends"
"""Method of ``ModelRunner`` after which a model is complete; None: there is no such moment."""

ALSO_REFUSED = (
    {}
    if hasattr(envs, "SGLANG_HTTP_SERVER_APP_PATH")  # 0.5.23, not 0.5.22
    else {"tokenizer_worker_num": "its workers load no plugins: SLOs would be lost"}
)
"""Settings to refuse that the newest release honours, with the reason."""

HAS_ABORT_HOOK = True
"""The tokenizer process has a method that sees aborts before they are answered."""


def switch_off_prefill_graphs(settings: Any) -> None:
    """Have prefills run eagerly, unless the user chose otherwise: graphs have no boundaries."""
    if settings.cuda_graph_backend_prefill is None:
        settings.cuda_graph_backend_prefill = "disabled"


def resolve(settings: Any) -> None:
    """Complete the settings, once."""
    settings.resolve_once()
