"""Which SGLang features cannot run together with FlowPrefill, and why.

Checked twice: on the parsed command line before anything starts, so that the error is a usage
error naming the flag, and in the scheduler process for facts only known there (model family).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.errors import UnsupportedSGLangError


@dataclass(frozen=True, slots=True)
class UnsupportedFeature:
    """One feature to refuse.

    Attributes:
        field: SGLang's setting.
        is_used: Tells from the setting's value whether the feature is asked for.
        why: What would break.
    """

    field: str
    is_used: Callable[[Any], bool]
    why: str

    @property
    def flag(self) -> str:
        """The command line flag."""
        return "--" + self.field.replace("_", "-")


def _above_one(value: Any) -> bool:
    return value is not None and value > 1


def _not_in(*harmless: Any) -> Callable[[Any], bool]:
    return lambda value: value not in harmless


_OTHER_RANKS = "only tensor-parallel ranks are made to stop at the same operator"
_OTHER_LOOP = "it brings an event loop of its own"
_OWN_STATE = "it keeps per-forward state that a suspended prefill would find overwritten"
_ORDER = "it decides about prefill order or pauses itself"

UNSUPPORTED_FEATURES = (
    UnsupportedFeature("nnodes", _above_one, "ranks agree through memory that they share"),
    UnsupportedFeature("pp_size", _above_one, _OTHER_LOOP),
    UnsupportedFeature("ep_size", _above_one, _OTHER_RANKS),
    UnsupportedFeature("attn_dp_size", _above_one, _OTHER_RANKS),
    UnsupportedFeature("attn_cp_size", _above_one, _OTHER_RANKS),
    UnsupportedFeature("dcp_size", _above_one, _OTHER_RANKS),
    UnsupportedFeature("enable_dp_attention", bool, _OTHER_RANKS),
    UnsupportedFeature("moe_a2a_backend", _not_in("none", None), _OTHER_RANKS),
    UnsupportedFeature("disaggregation_mode", _not_in("null", None), _OTHER_LOOP),
    UnsupportedFeature("enable_pd_role_switch", bool, _OTHER_LOOP),
    UnsupportedFeature("enable_pdmux", bool, _OTHER_LOOP),
    UnsupportedFeature("dllm_algorithm", _not_in(None), _OTHER_LOOP),
    UnsupportedFeature("use_ray", bool, "its processes do not run our start-up checks"),
    UnsupportedFeature("grpc_mode", bool, "SLOs are read from HTTP requests"),
    UnsupportedFeature("smg_grpc_mode", bool, "SLOs are read from HTTP requests"),
    UnsupportedFeature(
        "tokenizer_worker_num", _above_one, "tokenizer workers load no plugins: SLOs would be lost"
    ),
    UnsupportedFeature("encoder_only", bool, "there is no prefill to preempt"),
    UnsupportedFeature("language_only", bool, "embeddings arrive by another route"),
    UnsupportedFeature("is_embedding", bool, "its forward returns another kind of result"),
    UnsupportedFeature("speculative_algorithm", _not_in(None), _OWN_STATE),
    UnsupportedFeature("enable_lora", bool, _OWN_STATE),
    UnsupportedFeature("lora_paths", bool, _OWN_STATE),
    UnsupportedFeature("enable_two_batch_overlap", bool, _OWN_STATE),
    UnsupportedFeature("enable_single_batch_overlap", bool, _OWN_STATE),
    UnsupportedFeature("enable_torch_compile", bool, "compiled code has no operator boundaries"),
    UnsupportedFeature("enable_eplb", bool, _OWN_STATE),
    UnsupportedFeature("expert_distribution_recorder_mode", _not_in(None), _OWN_STATE),
    UnsupportedFeature("enable_return_routed_experts", bool, _OWN_STATE),
    UnsupportedFeature("enable_forward_pass_metrics", bool, _OWN_STATE),
    UnsupportedFeature("kv_canary", _not_in("none", None), _OWN_STATE),
    UnsupportedFeature("enable_hierarchical_cache", bool, _OWN_STATE),
    UnsupportedFeature("enable_lmcache", bool, _OWN_STATE),
    UnsupportedFeature("enable_flexkv", bool, _OWN_STATE),
    UnsupportedFeature("enable_hisparse", bool, _OWN_STATE),
    UnsupportedFeature(
        "enable_unified_memory", bool, "it moves KV pages under a suspended prefill"
    ),
    UnsupportedFeature(
        "enable_memory_saver", bool, "it unmaps memory that suspended prefills hold"
    ),
    UnsupportedFeature("cpu_offload_gb", bool, _OWN_STATE),
    UnsupportedFeature("enable_streaming_session", bool, "sessions lend request rows"),
    UnsupportedFeature("forward_hooks", bool, "hook order against ours is undefined"),
    UnsupportedFeature("enable_mixed_chunk", bool, "decode rows would be suspended too"),
    UnsupportedFeature("enable_dynamic_chunking", bool, _ORDER),
    UnsupportedFeature("enable_priority_scheduling", bool, _ORDER),
    UnsupportedFeature("enable_prefill_delayer", bool, _ORDER),
    UnsupportedFeature("min_free_slots_delay", _not_in(None), _ORDER),
    UnsupportedFeature("prefill_decode_interval", _not_in(None, 0), _ORDER),
    UnsupportedFeature("schedule_policy", _not_in("fcfs"), "FlowPrefill orders the queue itself"),
    UnsupportedFeature(
        "chunked_prefill_size",
        lambda value: value is not None and value > 0,
        "SGLang tracks a single partly prefilled request; pass -1 or leave it out",
    ),
    UnsupportedFeature("scheduler_recv_interval", _above_one, "arrivals would be noticed late"),
    UnsupportedFeature("num_continuous_decode_steps", _above_one, "arrivals would be noticed late"),
)


def refused_settings(settings: Any) -> list[str]:
    """Name every flag of a command line that is refused, with its value and the reason.

    Args:
        settings: SGLang's ``ServerArgs``, as the user wrote it.
    """
    return [
        f"{feature.flag} {getattr(settings, feature.field)}: {feature.why}"
        for feature in (*UNSUPPORTED_FEATURES, *releases.startup().ALSO_UNSUPPORTED)
        if hasattr(settings, feature.field) and feature.is_used(getattr(settings, feature.field))
    ]


def refused_families(config: Any) -> list[str]:
    """Name what keeps a model from being served, as far as its configuration tells.

    Args:
        config: SGLang's ``ModelConfig``.
    """
    facts = {
        "an embedding or reward model": not config.is_generation,
        "a multimodal model": bool(config.is_multimodal),
        "an encoder-decoder model": bool(config.is_encoder_decoder),
    }
    return [name for name, is_true in facts.items() if is_true]


def require_supported_settings(settings: Any) -> None:
    """Refuse a command line that asks for something unsupported.

    Args:
        settings: SGLang's ``ServerArgs``, as the user wrote it.

    Raises:
        UnsupportedSGLangError: Names every flag at fault.
    """
    problems = refused_settings(settings)
    if problems:
        raise UnsupportedSGLangError(
            "FlowPrefill does not support these settings; drop them, or serve without FlowPrefill "
            "(python -m sglang.launch_server):\n  " + "\n  ".join(problems)
        )


def require_supported_scheduler(scheduler: Any) -> None:
    """Refuse a model that only the scheduler process knows to be unsupported.

    Raises:
        UnsupportedSGLangError: Says what the model is.
    """
    config = scheduler.model_config
    facts = {
        "a hybrid state-space model": bool(scheduler.is_hybrid_ssm),
        "a model with a hybrid sliding-window cache": bool(scheduler.is_hybrid_swa),
    }
    found = refused_families(config) + [name for name, is_true in facts.items() if is_true]
    if found:
        raise UnsupportedSGLangError(
            f"{config.model_path} is {' and '.join(found)}, which FlowPrefill does not support "
            "yet; serve it with python -m sglang.launch_server"
        )
    if scheduler.enable_overlap or scheduler.chunked_prefill_size is not None:
        raise UnsupportedSGLangError(
            "SGLang's overlap scheduling or chunked prefill is on although FlowPrefill switched it "
            "off: another plugin or a model override changed the settings"
        )
