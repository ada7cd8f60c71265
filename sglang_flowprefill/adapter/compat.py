"""Every upstream symbol that this package touches, as data.

A row is a promise that we rely on: the symbol exists and takes these parameters. Enabled, the
plugin verifies all rows before anything starts and refuses to run on a mismatch: a renamed
method would otherwise leave an override that nobody calls. ``tests/upstream`` runs the same
check, and compares the rows with what the adapter's source really imports.
"""

import inspect
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.errors import UnsupportedSGLangError

SUPPORTED_VERSIONS = tuple(release.version for release in releases.RELEASES)
_WITH_PLUGINS = ("0.5.22", "0.5.23")
_WITHOUT_PLUGINS = ("0.5.10.post1",)


@dataclass(frozen=True, slots=True)
class UpstreamSymbol:
    """One symbol of SGLang.

    Attributes:
        path: Dotted path below ``sglang.srt``.
        used_in: File of the adapter that uses it.
        why: What for.
        parameters: Leading parameter names of a callable that we call or override.
        releases: The supported releases that have it; what the others have instead is in
            ``releases/``.
    """

    path: str
    used_in: str
    why: str
    parameters: tuple[str, ...] | None = None
    releases: tuple[str, ...] = SUPPORTED_VERSIONS


_SCHEDULER = "managers.scheduler.Scheduler"


def _override(
    name: str, why: str, *parameters: str, releases: tuple[str, ...] = SUPPORTED_VERSIONS
) -> UpstreamSymbol:
    path = f"{_SCHEDULER}.{name}"
    return UpstreamSymbol(path, "scheduler.py", why, ("self", *parameters), releases)


UPSTREAM = (
    # Overridden or called methods of the scheduler.
    UpstreamSymbol(_SCHEDULER, "scheduler.py", "subclassed", ("server_args", "port_args")),
    _override("event_loop_normal", "replaced by the event loop"),
    _override("event_loop_overlap", "never run by accident"),
    _override("maybe_sleep_on_idle", "sleeps on ZMQ"),
    _override("on_idle", "idle housekeeping and leak checks", releases=_WITH_PLUGINS),
    _override("ingest_requests", "intake", releases=_WITH_PLUGINS),
    _override("process_input_requests", "drains before control messages", "recv_reqs"),
    _override("abort_request", "reaches suspended prefills", "recv_req"),
    _override("is_fully_idle", "not while prefills are suspended", "for_health_check"),
    _override(
        "_collect_inflight_batches",
        "aborts and timeouts see suspended batches",
        releases=_WITH_PLUGINS,
    ),
    _override("init_invariant_checker", "leak checks count suspended rows", releases=_WITH_PLUGINS),
    _override(
        "init_load_inquirer", "load reports count suspended requests", releases=_WITH_PLUGINS
    ),
    _override("get_num_allocatable_reqs", "suspended requests count", "running_bs"),
    _override("get_prefill_adder_class", "reserves for suspended requests", releases=_WITH_PLUGINS),
    _override(
        "get_new_batch_prefill", "admission and memory", "running_batch", releases=_WITH_PLUGINS
    ),
    _override("update_running_batch", "drops a cursor before retracting", "batch"),
    _override("get_internal_state", "statistics", "recv_req"),
    _override("_add_request_to_queue", "prefix match, restarts", "req", "is_retracted"),
    _override(
        "_release_aborted_request", "releases cancelled requests", "req", releases=_WITH_PLUGINS
    ),
    _override(
        "send_abort_output", "answers cancelled requests", "abort_req", "req", releases=("0.5.23",)
    ),
    _override("run_batch", "the forward pass", "batch"),
    _override("process_batch_result", "first tokens, caching", "batch", "result"),
    _override("_record_scheduler_state_for_paused_engine", "pause", releases=_WITH_PLUGINS),
    _override("stash_chunked_request", "publishes a chunk's KV", "req"),
    _override("flush_cache", "forgets warm-up prompts", "empty_cache", releases=_WITH_PLUGINS),
    # The scheduler of a release without plugins.
    *(
        UpstreamSymbol(
            f"{_SCHEDULER}.{name}",
            "releases/scheduling_0_5_10.py",
            why,
            ("self", *given),
            _WITHOUT_PLUGINS,
        )
        for name, why, given in (
            ("recv_requests", "intake", ()),
            ("_abort_on_waiting_timeout", "intake", ()),
            ("_abort_on_running_timeout", "intake", ()),
            ("self_check_during_idle", "idle housekeeping and leak checks", ()),
            ("self_check_during_busy", "leak checks count suspended requests", ()),
            ("get_new_batch_prefill", "admission and memory", ()),
            ("flush_cache", "forgets warm-up prompts", ()),
            ("cancel_bubble_timer", "pause", ()),
        )
    ),
    UpstreamSymbol(
        "managers.scheduler.PrefillAdder",
        "releases/scheduling_0_5_10.py",
        "replaced by ours",
        releases=_WITHOUT_PLUGINS,
    ),
    UpstreamSymbol(
        "managers.scheduler.is_health_check_generate_req",
        "releases/scheduling_0_5_10.py",
        "not a user's",
        ("recv_req",),
        _WITHOUT_PLUGINS,
    ),
    UpstreamSymbol(
        "model_executor.forward_batch_info.ForwardMode",
        "releases/scheduling_0_5_10.py",
        "leak checks count suspended requests",
        releases=_WITHOUT_PLUGINS,
    ),
    UpstreamSymbol(
        "server_args.ATTENTION_BACKEND_CHOICES",
        "releases/startup_0_5_10.py",
        "flowprefill_cpu, an alias",
        releases=_WITHOUT_PLUGINS,
    ),
    UpstreamSymbol(
        "server_args.ServerArgs.__post_init__",
        "releases/startup_0_5_10.py",
        "settings",
        ("self",),
        _WITHOUT_PLUGINS,
    ),
    # Functions and classes.
    UpstreamSymbol(
        "managers.scheduler._make_abort_req",
        "releases/scheduling_0_5_23.py",
        "abort",
        ("req", "finished_reason"),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "disaggregation.utils.prepare_abort", "scheduler.py", "abort", ("req", "error_message")
    ),
    UpstreamSymbol(
        "mem_cache.common.release_kv_cache",
        "releases/scheduling_0_5_23.py",
        "releases KV",
        ("req", "tree_cache"),
    ),
    UpstreamSymbol("managers.schedule_batch.FINISH_ABORT", "scheduler.py", "aborted or not"),
    UpstreamSymbol(
        "managers.schedule_batch.Req",
        "warm_up.py",
        "warm-up requests",
        ("rid", "origin_input_text", "origin_input_ids", "sampling_params"),
    ),
    UpstreamSymbol(
        "managers.schedule_batch.Req.reset_for_retract", "scheduler.py", "restarts", ("self",)
    ),
    UpstreamSymbol(
        "managers.schedule_batch.Req.finished", "scheduler.py", "completions", ("self",)
    ),
    UpstreamSymbol(
        "managers.schedule_batch.Req.init_next_round_input",
        "scheduler.py",
        "prefix match",
        ("self", "tree_cache"),
    ),
    UpstreamSymbol(
        "managers.schedule_batch.ScheduleBatch.filter_batch", "scheduler.py", "decode", ("self",)
    ),
    UpstreamSymbol(
        "managers.schedule_batch.ScheduleBatch.merge_batch", "scheduler.py", "decode", ("self",)
    ),
    UpstreamSymbol(
        "managers.schedule_batch.ScheduleBatch.check_decode_mem",
        "scheduler.py",
        "decode",
        ("self",),
    ),
    UpstreamSymbol(
        "managers.schedule_policy.PrefillAdder",
        "prefill_adder.py",
        "subclassed",
        ("page_size", "tree_cache", "token_to_kv_pool_allocator", "running_batch"),
    ),
    UpstreamSymbol(
        "managers.schedule_policy.AddReqResult", "prefill_adder.py", "verdict of admission"
    ),
    UpstreamSymbol(
        "managers.schedule_policy.PrefillAdder.add_one_req",
        "prefill_adder.py",
        "what a request lacks",
        ("self", "req"),
    ),
    UpstreamSymbol(
        "managers.schedule_policy.PrefillAdder.add_chunked_req",
        "prefill_adder.py",
        "what a chunk lacks",
        ("self", "req"),
    ),
    UpstreamSymbol(
        "managers.schedule_policy.PrefillAdder._get_running_request_total_token_offset",
        "prefill_adder.py",
        "reserves for chunks to come",
        ("self", "req"),
    ),
    UpstreamSymbol(
        "managers.utils.is_health_check_generate_req",
        "releases/scheduling_0_5_23.py",
        "not a user's",
        ("recv_req",),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "observability.req_time_stats.set_schedule_time_batch", "scheduler.py", "traces", ("batch",)
    ),
    UpstreamSymbol(
        "observability.trace.TraceReqContext.trace_event",
        "request_traces.py",
        "preemptions in traces",
        ("self", "name", "level", "ts", "attrs"),
    ),
    UpstreamSymbol("sampling.sampling_params.SamplingParams", "warm_up.py", "warm-up requests"),
    UpstreamSymbol("utils.common.DynamicGradMode", "scheduler.py", "the loop's grad mode"),
    UpstreamSymbol(
        "runtime_context.get_observability",
        "releases/scheduling_0_5_23.py",
        "metrics on or off",
        (),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "runtime_context.get_parallel",
        "releases/scheduling_0_5_23.py",
        "data-parallel rank",
        (),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "runtime_context.get_forward",
        "releases/scheduling_0_5_23.py",
        "per-forward flags",
        (),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "runtime_context.ForwardFlags._plain",
        "releases/scheduling_0_5_23.py",
        "per-forward flags",
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "model_executor.forward_context.set_forward_context",
        "releases/scheduling_0_5_23.py",
        "per-forward context",
        ("ctx",),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol("environ.envs", "event_loop.py", "SGLang's own checks on or off"),
    # Messages that the loop tells apart.
    *(
        UpstreamSymbol(f"managers.io_struct.{name}", used_in, "kind of message")
        for name, used_in in (
            ("AbortReq", "messages.py"),
            ("BatchTokenizedGenerateReqInput", "messages.py"),
            ("TokenizedGenerateReqInput", "messages.py"),
            ("ConfigureLoggingReq", "messages.py"),
            ("ContinueGenerationReqInput", "messages.py"),
            ("FlushCacheReqInput", "messages.py"),
            ("FreezeGCReq", "messages.py"),
            ("GetInternalStateReq", "messages.py"),
            ("PauseGenerationReqInput", "messages.py"),
            ("GenerateReqInput", "http.py"),
        )
    ),
    # Modules that are operators, and attention.
    *(
        UpstreamSymbol(f"layers.{name}", "coverage.py", "operator boundary")
        for name in (
            "layernorm.RMSNorm",
            "layernorm.GemmaRMSNorm",
            "layernorm.Gemma3RMSNorm",
            "layernorm.LayerNorm",
            "linear.LinearBase",
            "radix_attention.RadixAttention",
            "moe.fused_moe_triton.layer.FusedMoE",
            "logits_processor.LogitsProcessor",
        )
    ),
    UpstreamSymbol(
        "layers.layernorm.Gemma4RMSNorm",
        "releases/scheduling_0_5_23.py",
        "operator boundary",
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "layers.vocab_parallel_embedding.VocabParallelEmbedding",
        "coverage.py",
        "needs no boundary",
    ),
    UpstreamSymbol(
        "layers.attention.attention_registry.ATTENTION_BACKENDS", "attention.py", "registration"
    ),
    UpstreamSymbol(
        "layers.attention.torch_native_backend.TorchNativeAttnBackend._run_sdpa_forward_extend",
        "attention.py",
        "tiled on the CPU",
        ("self", "query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices"),
    ),
    UpstreamSymbol(
        "layers.attention.torch_native_backend.TorchNativeAttnBackend._run_sdpa_forward_decode",
        "attention.py",
        "compiled on the CPU",
        ("self", "query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices"),
    ),
    UpstreamSymbol(
        "layers.attention.torch_native_backend.TorchNativeAttnBackend.init_forward_metadata",
        "attention.py",
        "starts a plan for each forward pass",
        ("self", "forward_batch"),
    ),
    UpstreamSymbol(
        "layers.attention.flashinfer_backend.FlashInferAttnBackend.init_forward_metadata",
        "flashinfer.py",
        "plans tiles beside SGLang's own plan",
        ("self", "forward_batch"),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "layers.attention.flashinfer_backend.FlashInferAttnBackend.forward_extend",
        "flashinfer.py",
        "tiled",
        ("self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "layers.attention.flashinfer_backend.FlashInferAttnBackend._kv_write_scales",
        "flashinfer.py",
        "writes keys and values before the tiles",
        ("self", "layer"),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "layers.radix_attention.AttentionType",
        "flashinfer.py",
        "causal or not",
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "mem_cache.memory_pool.KVWriteLoc.for_layer",
        "flashinfer.py",
        "writes keys and values before the tiles",
        ("forward_batch", "layer", "swa_loc"),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "layers.layernorm.RMSNorm.forward_native",
        "cpu_ops.py",
        "compiled on the CPU",
        ("self", "x", "residual"),
    ),
    UpstreamSymbol(
        "layers.activation.SiluAndMul.forward_native",
        "cpu_ops.py",
        "compiled on the CPU",
        ("self", "x"),
    ),
    UpstreamSymbol(
        "layers.rotary_embedding.base.RotaryEmbedding.forward_native",
        "cpu_ops.py",
        "compiled on the CPU",
        ("self", "positions", "query", "key"),
    ),
    UpstreamSymbol(
        "mem_cache.memory_pool._set_kv_buffer_impl",
        "plugin.py",
        "compiled on the CPU",
        ("k", "v", "k_cache", "v_cache", "indices"),
    ),
    UpstreamSymbol(
        "layers.quantization.unquant.UnquantizedLinearMethod.apply",
        "packed_weights.py",
        "weights packed once on the CPU",
        ("self", "layer", "x", "bias"),
    ),
    *(
        UpstreamSymbol(
            f"layers.linear.{name}.forward",
            "doorbell.py",
            "a product that can be stopped",
            ("self", x),
        )
        for name, x in (
            ("ReplicatedLinear", "x"),
            ("ColumnParallelLinear", "input_"),
            ("RowParallelLinear", "input_"),
        )
    ),
    UpstreamSymbol(
        "layers.quantization.unquant.UnquantizedEmbeddingMethod.apply",
        "packed_weights.py",
        "LM head packed once on the CPU",
        ("self", "layer", "x", "bias"),
    ),
    *(
        UpstreamSymbol(
            f"models.{family}.{part}.forward",
            "direct_decoder.py",
            "its operators are called without it on the CPU",
            parameters,
        )
        for family, name in (("llama", "Llama"), ("qwen2", "Qwen2"))
        for part, parameters in (
            (f"{name}Model", ("self", "input_ids", "positions", "forward_batch", "input_embeds")),
            (f"{name}DecoderLayer", ("self", "positions", "hidden_states", "forward_batch")),
            (f"{name}Attention", ("self", "positions", "hidden_states", "forward_batch")),
            (f"{name}MLP", ("self", "x")),
        )
    ),
    *(
        UpstreamSymbol(f"layers.linear.{name}", "direct_decoder.py", "a product of such a layer")
        for name in ("QKVParallelLinear", "MergedColumnParallelLinear", "RowParallelLinear")
    ),
    UpstreamSymbol(
        "mem_cache.memory_pool.MHATokenToKVPool.get_key_buffer",
        "direct_decoder.py",
        "written and read in place",
        ("self", "layer_id"),
    ),
    UpstreamSymbol(
        "mem_cache.memory_pool.MHATokenToKVPool.get_value_buffer",
        "direct_decoder.py",
        "written and read in place",
        ("self", "layer_id"),
    ),
    UpstreamSymbol(
        "model_executor.forward_batch_info.ForwardMode",
        "direct_decoder.py",
        "which passes it takes",
    ),
    UpstreamSymbol(
        "layers.logits_processor.should_apply_lm_head_quant_method",
        "packed_weights.py",
        "lets our method compute the logits",
        ("lm_head", "quant_method"),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "model_executor.model_runner.ModelRunner.init_attention_backends",
        "plugin.py",
        "our kernels under SGLang's scheduler",
        ("self",),
        releases=_WITH_PLUGINS,
    ),
    # Start-up.
    UpstreamSymbol("server_args.ServerArgs.add_cli_args", "plugin.py", "our flags", ("parser",)),
    UpstreamSymbol("server_args.ServerArgs.from_cli_args", "plugin.py", "our flags", ("args",)),
    UpstreamSymbol(
        "server_args.ServerArgs.resolve_once",
        "releases/startup_0_5_23.py",
        "settings",
        ("self",),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "arg_groups.choices.ATTENTION_BACKEND_CHOICES",
        "releases/startup_0_5_23.py",
        "flowprefill_cpu, an alias",
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol("server_args.prepare_server_args", "launch.py", "command line", ("argv",)),
    UpstreamSymbol(
        "plugins.load_plugins",
        "releases/startup_0_5_23.py",
        "plugin in every process",
        (),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "plugins.hook_registry.HookRegistry",
        "releases/startup_0_5_23.py",
        "hooks",
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "plugins.hook_registry.HookType",
        "releases/startup_0_5_23.py",
        "hooks",
        releases=_WITH_PLUGINS,
    ),
)

# Imported by the process that speaks HTTP only: verified there, not in every scheduler.
UPSTREAM_HTTP = (
    UpstreamSymbol(
        "managers.tokenizer_manager.TokenizerManager.generate_request",
        "plugin.py",
        "SLO and arrival stamp",
        ("self", "obj", "request"),
    ),
    UpstreamSymbol(
        "entrypoints.openai.serving_base.OpenAIServingBase._parse_model_parameter",
        "plugin.py",
        "model names with a colon",
        ("self", "model"),
    ),
    UpstreamSymbol(
        "managers.tokenizer_manager.TokenizerManager._handle_abort_finish_reason",
        "plugin.py",
        "answers refused requests",
        ("self", "out", "state", "is_stream"),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "environ.Envs.SGLANG_HTTP_SERVER_APP_PATH",
        "http/hooks.py",
        "the application of several tokenizer workers",
        releases=("0.5.23",),
    ),
    UpstreamSymbol(
        "managers.multi_tokenizer_mixin.get_main_process_id",
        "http/worker.py",
        "names the settings of workers",
        (),
        releases=("0.5.23",),
    ),
    UpstreamSymbol(
        "managers.multi_tokenizer_mixin.read_from_shared_memory",
        "http/worker.py",
        "settings of workers",
        ("name",),
        releases=("0.5.23",),
    ),
    UpstreamSymbol(
        "entrypoints.http_server.launch_server",
        "launch.py",
        "the server",
        ("server_args", "init_tokenizer_manager_func", "run_scheduler_process_func"),
    ),
    UpstreamSymbol("entrypoints.http_server.app", "http.py", "middleware and live routes"),
    UpstreamSymbol("utils.auth.AuthLevel.ADMIN_OPTIONAL", "live_http.py", "who may ask for state"),
    UpstreamSymbol("utils.auth.auth_level", "live_http.py", "who may ask for state", ("level",)),
    UpstreamSymbol("utils.auth.AuthDecision", "live_http.py", "the page needs no key"),
    UpstreamSymbol(
        "utils.auth.decide_request_auth", "plugin.py", "the page needs no key", ("method", "path")
    ),
    UpstreamSymbol(
        "entrypoints.engine.Engine.run_scheduler_process_func", "launch.py", "profile command"
    ),
    UpstreamSymbol(
        "managers.scheduler.run_scheduler_process",
        "launch.py",
        "the scheduler process",
        ("server_args", "port_args", "gpu_id"),
    ),
    UpstreamSymbol("utils.kill_process_tree", "launch.py", "shutdown", ("parent_pid",)),
)

# Used by the doctor command only, to build a model without its weights: verified there.
UPSTREAM_DOCTOR = (
    UpstreamSymbol(
        "configs.model_config.ModelConfig.from_server_args",
        "bare_model.py",
        "what a model is",
        ("server_args",),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "configs.load_config.LoadConfig",
        "bare_model.py",
        "a model without weights",
        (),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "model_loader.loader._initialize_model",
        "bare_model.py",
        "a model without weights",
        ("model_config", "load_config"),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "runtime_context.publish",
        "bare_model.py",
        "settings",
        ("server_args",),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "runtime_context.SpawnRanks",
        "bare_model.py",
        "one rank",
        ("world_rank",),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "distributed.parallel_state.init_distributed_environment",
        "bare_model.py",
        "one rank",
        ("world_size", "rank", "distributed_init_method", "local_rank", "backend"),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "distributed.parallel_state.initialize_model_parallel",
        "bare_model.py",
        "one rank",
        (),
        releases=_WITH_PLUGINS,
    ),
    UpstreamSymbol(
        "layers.dp_attention.initialize_dp_attention",
        "bare_model.py",
        "one rank",
        ("server_args",),
        releases=_WITH_PLUGINS,
    ),
)

EVERY_ROW = (*UPSTREAM, *UPSTREAM_HTTP, *UPSTREAM_DOCTOR)

# What this project is tested with on a CPU; requirements/cpu.txt holds the same (tested).
TESTED_PACKAGES = {"torch": "2.13.0", "transformers": "5.19.0"}


def rows_of(rows: Sequence[UpstreamSymbol], version: str) -> list[UpstreamSymbol]:
    """Return the rows that a release must fulfil."""
    return [row for row in rows if version in row.releases]


def verify_version() -> None:
    """Check the installed SGLang's version.

    Raises:
        UnsupportedSGLangError: It is not one that this release was made for.
    """
    releases.installed_release()


def verify_symbols(rows: tuple[UpstreamSymbol, ...] = UPSTREAM) -> None:
    """Check that every row holds for the installed SGLang.

    Raises:
        UnsupportedSGLangError: Lists every row that does not.
    """
    due = rows_of(rows, releases.installed_version())
    problems = [problem for row in due if (problem := mismatch(row))]
    if problems:
        raise UnsupportedSGLangError(
            "the installed SGLang differs from the one FlowPrefill was made for:\n  "
            + "\n  ".join(problems)
        )


def mismatch(row: UpstreamSymbol) -> str | None:
    """Return what is wrong with a row, None if it holds."""
    path = f"sglang.srt.{row.path}"
    try:
        symbol = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        return f"{path} (used in adapter/{row.used_in}) is gone: {error}"
    if row.parameters is None:
        return None
    found = _parameter_names(symbol)
    if found[: len(row.parameters)] != row.parameters:
        return (
            f"{path} (used in adapter/{row.used_in}) takes {found}, expected {row.parameters} first"
        )
    return None


def _parameter_names(symbol: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(symbol).parameters)
