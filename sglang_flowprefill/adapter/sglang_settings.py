"""What becomes of SGLang's settings: honoured, taken over or refused, and how that is shown.

One table, read by the launcher, by ``doctor``, by the generated documentation and by the tests. A
setting at its default asks for nothing. Every field of SGLang 0.5.23's ``ServerArgs`` is in
``RULES`` or in ``UNTOUCHED``; a test fails for one that is in neither.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Treatment(Enum):
    """What becomes of a setting."""

    HONOURED = "honoured"
    TAKEN_OVER = "taken over"
    REFUSED = "refused"


class Proof(Enum):
    """How it is shown that prefills may be suspended with this setting."""

    RUN = "run here"
    FAKE = "interpreter or fake"
    READ = "only read"
    NONE = "not needed"


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of one setting, for some of its values.

    Attributes:
        field: Of SGLang's ``ServerArgs``.
        treatment: What becomes of it.
        proof: How that is shown; of a refusal, how its reason is known.
        why: Taken over: what is done instead. Refused: what would break. Honoured: the evidence.
        is_for: Tells from the value whether the rule speaks of it.
        instead: Of a refusal, what to write to be served.
        served_value: Of a refusal, a value that is served, for lines that name a variable.
    """

    field: str
    treatment: Treatment
    proof: Proof
    why: str
    is_for: Callable[[Any], bool] = bool
    instead: str = ""
    served_value: str = ""

    @property
    def flag(self) -> str:
        """The command line flag."""
        return _FLAGS.get(self.field, "--" + self.field.replace("_", "-"))


_FLAGS = {
    "fp8_gemm_runner_backend": "--fp8-gemm-backend",
    "fp4_gemm_runner_backend": "--fp4-gemm-backend",
    "ep_join_mode": "--elastic-ep-join-mode",
}
"""Flags that are not called as their field."""


def _above_one(value: Any) -> bool:
    return value is not None and value > 1


def _is_set(value: Any) -> bool:
    return value is not None


def _any(_value: Any) -> bool:
    return True


def _in(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


def _not_in(*harmless: Any) -> Callable[[Any], bool]:
    return lambda value: value not in harmless


_OTHER_RANKS = "only tensor-parallel ranks are made to stop at the same operator"
_OTHER_LOOP = "it brings an event loop of its own"
_OWN_STATE = "it keeps per-forward state that a suspended prefill would find overwritten"
_STEP_BY_STEP = "FlowPrefill looks for arrivals at every operator and after every decode step"
_OUR_ORDER = "FlowPrefill orders the queue itself"
_LEAVE_OUT = "leave the flag out"
_ONE = "1"

OUR_POLICIES = {"hrrn": "hrrn", "shortest-prefill-first": "sjf", "fcfs": "fcfs"}
"""Our policy (``--flowprefill-policy``) for a ``--schedule-policy`` of SGLang's."""

REPLANNED_BACKENDS = ("flashinfer", "triton", "trtllm_mha", "trtllm_mla", "aiter")
"""Attention backends whose plan is made again when a prefill resumes (``forward_state.py``)."""


def _refused(
    field: str,
    is_for: Callable[[Any], bool],
    why: str,
    instead: str = _LEAVE_OUT,
    served_value: str = "",
) -> Rule:
    return Rule(field, Treatment.REFUSED, Proof.READ, why, is_for, instead, served_value)


def _taken_over(field: str, is_for: Callable[[Any], bool], how: str) -> Rule:
    return Rule(field, Treatment.TAKEN_OVER, Proof.RUN, how, is_for)


def _run(field: str, is_for: Callable[[Any], bool], evidence: str) -> Rule:
    return Rule(field, Treatment.HONOURED, Proof.RUN, evidence, is_for)


def _read(fields: str, evidence: str, is_for: Callable[[Any], bool] = _any) -> tuple[Rule, ...]:
    return tuple(
        Rule(field, Treatment.HONOURED, Proof.READ, evidence, is_for) for field in fields.split()
    )


_MORE_RULES = (
    *(
        _refused("nnodes", _above_one, "ranks agree through memory that they share", "one node"),
        _refused("pp_size", _above_one, _OTHER_LOOP, "--tp-size on one node"),
        _refused(
            "ep_size",
            _above_one,
            "experts spread over ranks were never tried (ADR 48)",
            "--tp-size, which cuts experts across ranks",
            _ONE,
        ),
        _refused("attn_dp_size", _above_one, _OTHER_RANKS, "--tp-size", _ONE),
        _refused("attn_cp_size", _above_one, _OTHER_RANKS, "--tp-size", _ONE),
        _refused("dcp_size", _above_one, _OTHER_RANKS, "--tp-size", _ONE),
        _refused("moe_dp_size", _above_one, _OTHER_RANKS, "--tp-size", _ONE),
        _refused("dwdp_size", _above_one, _OTHER_RANKS, "--tp-size", _ONE),
        _refused("enable_prefill_cp", bool, _OTHER_RANKS),
        _refused("enable_kv_cache_sharding", bool, _OTHER_RANKS),
        _refused(
            "enable_dp_attention",
            bool,
            "its groups meet in every forward pass, idle ones too, and would wait for a suspended "
            "one (ADR 48)",
            "--tp-size without it",
        ),
        _refused(
            "moe_a2a_backend",
            _not_in("none", None),
            "ranks meet in every expert layer by another way than tensor-parallel ones (ADR 48)",
            "--moe-a2a-backend none",
            "none",
        ),
        _refused("elastic_ep_backend", _is_set, _OTHER_RANKS),
        _refused("ep_join_mode", _is_set, _OTHER_RANKS),
        _refused("max_ep_size", _is_set, _OTHER_RANKS),
        _refused("elastic_ep_initial_size", _is_set, _OTHER_RANKS),
        _refused("enable_elastic_expert_backup", bool, _OTHER_RANKS),
        _refused("enable_waterfill", bool, _OTHER_RANKS),
        _refused("enable_layernorm_sp", bool, "ranks hold parts of each row between operators"),
    ),
    *(
        _refused("disaggregation_mode", _not_in("null", None), _OTHER_LOOP),
        _refused("enable_pd_role_switch", bool, _OTHER_LOOP),
        _refused("enable_pdmux", bool, _OTHER_LOOP),
        _refused("dllm_algorithm", _is_set, _OTHER_LOOP),
        _refused("use_ray", bool, "its processes do not run our start-up checks"),
        _refused("grpc_mode", bool, "SLOs are read from HTTP requests"),
        _refused("smg_grpc_mode", bool, "SLOs are read from HTTP requests"),
        _refused("grpc_port", _is_set, "SLOs are read from HTTP requests"),
        _refused("sidecar", _is_set, "SLOs are read from HTTP requests"),
        _run("tokenizer_worker_num", _above_one, "tests/integration/test_tokenizer_workers.py"),
        _refused("encoder_only", bool, "there is no prefill to preempt"),
        _refused("language_only", bool, "embeddings arrive by another route"),
        _refused("is_embedding", bool, "its forward returns another kind of result"),
        _refused(
            "speculative_algorithm",
            _is_set,
            "drafts and their acceptance live in the batch while it runs; suspended between "
            "operators they were never tried (ADR 47)",
            "the same line without --speculative-*",
        ),
        _refused("decoupled_spec_role", _not_in("null", None), _OTHER_LOOP),
        _refused("enable_lora", bool, "a batch's adapters are set for the whole model, before it"),
        _refused("lora_paths", bool, "a batch's adapters are set for the whole model, before it"),
    ),
    *(
        _refused(field, is_for, _OWN_STATE)
        for field, is_for in (
            ("enable_two_batch_overlap", bool),
            ("enable_single_batch_overlap", bool),
            ("enable_eplb", bool),
            ("expert_distribution_recorder_mode", _is_set),
            ("expert_balancedness_report_mode", _not_in("off", None)),
            ("enable_return_routed_experts", bool),
            ("enable_return_indexer_topk", bool),
            ("enable_return_aux_hidden_states", bool),
            ("enable_forward_pass_metrics", bool),
            ("kv_canary", _not_in("none", None)),
            ("kv_canary_real_data", _not_in("none", None)),
            ("enable_lmcache", bool),
            ("enable_flexkv", bool),
            ("enable_hisparse", bool),
            ("enable_unified_cache_external_linker", bool),
            ("cpu_offload_gb", bool),
            ("offload_group_size", lambda value: value is not None and value > 0),
            ("enable_paged_experts", bool),
            ("enable_nvidia_megakernel", bool),
            ("enable_amd_monokernel", bool),
            ("enable_megamoe_for_layernorm_sp", bool),
            ("msprobe_dump_config", _is_set),
            ("debug_tensor_dump_output_folder", _is_set),
            ("enable_torch_compile_debug_mode", bool),
            ("prefill_only_disable_kv_cache", bool),
            ("enable_encoder_swa_bounded_replay", bool),
            ("kt_weight_path", _is_set),
        )
    ),
    _refused(
        "enable_hierarchical_cache",
        bool,
        "loads and write-backs run beside a forward pass, layer by layer; they were never tried "
        "beside a suspended one",
        "the same line without --enable-hierarchical-cache (--hicache-* then do nothing)",
    ),
    _refused("enable_unified_memory", bool, "it moves KV pages under a suspended prefill"),
    _refused("enable_memory_saver", bool, "it unmaps memory that suspended prefills hold"),
    _refused("enable_streaming_session", bool, "sessions lend request rows"),
    _refused("forward_hooks", bool, "hook order against ours is undefined"),
    _refused("enable_torch_compile", bool, "compiled code has no operator boundaries"),
    _refused(
        "enable_mis", bool, "its masks are of the whole prompt, which a chunk of ours would cut"
    ),
    _refused("enable_dynamic_chunking", bool, "it is for pipeline parallelism"),
    _refused("min_free_slots_delay", _is_set, "urgent requests would wait for slots to free up"),
    _refused(
        "retraction_policy",
        _not_in("length", None),
        "FlowPrefill drops work by memory and deadline, not by it",
    ),
    _taken_over(
        "chunked_prefill_size",
        lambda value: value is not None and value > 0,
        "a forward pass takes at most this many tokens of a prompt "
        "(--flowprefill-max-chunk-tokens), unless that flag is given",
    ),
    _run("chunked_prefill_size", _in(-1, 0), "chunks are ours in any case"),
    _taken_over("scheduler_recv_interval", _above_one, f"set to 1: {_STEP_BY_STEP}"),
    _taken_over("num_continuous_decode_steps", _above_one, f"set to 1: {_STEP_BY_STEP}"),
    _taken_over(
        "enable_prefill_delayer",
        bool,
        "switched off: TPOT objectives say when decode goes before prefills",
    ),
    _taken_over(
        "prefill_decode_interval",
        _not_in(None, 0),
        "set to 0: TPOT objectives say when decode goes before prefills",
    ),
    _taken_over(
        "enable_mixed_chunk",
        bool,
        "switched off: decode steps run inside prefills, between operators, when they are due",
    ),
    _run(
        "schedule_policy",
        _in("fcfs"),
        "SGLang's default: FlowPrefill's own order, unless --flowprefill-policy fcfs is given",
    ),
    _taken_over(
        "schedule_policy",
        _in("hrrn", "shortest-prefill-first"),
        "FlowPrefill's policy of that kind orders (--flowprefill-policy hrrn or sjf), unless "
        "--flowprefill-policy is given",
    ),
    _taken_over("schedule_policy", _any, _OUR_ORDER),
    _refused(
        "enable_priority_scheduling",
        bool,
        "FlowPrefill orders by SLO, and would pass over priorities in silence",
        "SLO classes instead (--flowprefill-slo-config)",
    ),
    _run(
        "disable_overlap_schedule",
        bool,
        "off in any case: a suspended forward pass cannot sit inside its pipeline",
    ),
    *(
        _run(name, _in("torch_native", "flowprefill_cpu"), "every test of the engine")
        for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
    ),
    *(
        _refused(
            name,
            _in("dsa", "nsa", "dsv4", "compressed"),
            "its index of keys is made while the layers run; not read to the end",
            "another backend that the model has",
        )
        for name in (
            "attention_backend",
            "prefill_attention_backend",
            "decode_attention_backend",
        )
    ),
    *(
        rule
        for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
        for rule in (
            *_read(
                name,
                "planned again at every resume: its plan depends on the batch alone "
                "(init_forward_metadata)",
                _in(*REPLANNED_BACKENDS),
            ),
            *_read(name, "its plan is a fresh object per forward pass: swapped", _in("fa3", "fa4")),
            _refused(
                name,
                _any,
                "what this backend keeps per forward pass is not known",
                "--attention-backend flashinfer, triton or fa3",
            ),
        )
    ),
    _run("tp_size", _any, "tests/integration/test_tensor_parallel.py on two ranks"),
    _run("dp_size", _any, "tests/integration/test_data_parallel.py on two replicas"),
    *_read(
        "load_balance_method",
        "replicas are servers of their own, each with its own loop and queue",
    ),
    _run("disable_radix_cache", bool, "tests/engine runs model families without it"),
    _run("page_size", _in(1), "SGLang's default on a CPU"),
    *_read(
        "page_size",
        "chunks end at page ends, as SGLang's own (prefill_adder.py); larger pages are of GPU "
        "backends",
    ),
    _run("max_total_tokens", _any, "tests/integration/test_chunks_and_memory.py"),
    _run("mem_fraction_static", _any, "every server on a CPU is started with it"),
    _run("max_running_requests", _any, "tests/integration"),
    _run("schedule_conservativeness", _any, "tests/integration/test_tensor_parallel.py"),
    _run("dtype", _any, "float32 and bfloat16 in every integration test"),
    _run("max_prefill_tokens", _any, "bounds a forward pass beside --flowprefill-max-batch-tokens"),
    _run("prefill_max_requests", _any, "SGLang's own admission bounds a batch by it"),
    _run("device", _in("cpu", None), "every test"),
    *_read("device", "CUDA: only read; others never"),
    _run("enable_metrics", bool, "tests/integration/test_observability.py"),
)


def _kernels_and_sizes() -> tuple[Rule, ...]:
    return (
        *_read(
            """quantization quantization_param_path modelopt_quant modelopt_checkpoint_restore_path
            modelopt_checkpoint_save_path modelopt_export_path quantize_and_serve rl_quant_profile
            enable_fp32_lm_head enable_tf32_matmul""",
            "weights are constant while serving; a layer's product is one operator, whole or in "
            "row tiles (executor/tiling.py)",
        ),
        *_read(
            "kv_cache_dtype prefill_kv_cache_dequant_dtype",
            "a slot is written once by the forward pass that owns it (mem_cache/memory_pool.py)",
        ),
        *_read(
            """fp8_gemm_runner_backend fp4_gemm_runner_backend bf16_gemm_backend moe_runner_backend
            flashinfer_mxfp4_moe_precision disable_flashinfer_autotune flashinfer_autotune_skip_ops
            disable_flashinfer_cutlass_moe_fp4_allgather disable_shared_experts_fusion
            enforce_shared_experts_fusion enable_fused_moe_sum_all_reduce enable_fused_qk_norm_rope
            enable_lean_attention triton_attention_reduce_in_fp32 triton_attention_num_kv_splits
            triton_attention_split_tile_size flashinfer_mla_disable_ragged
            disable_chunked_prefix_cache sampling_backend enable_w4a4_mxfp4_megamoe
            shared_experts_tp_size moe_dense_tp_size""",
            "it chooses the kernel inside one operator; boundaries are between operators",
        ),
        *_read(
            """disable_custom_all_reduce enable_mscclpp enable_torch_symm_mem enable_nccl_nvls
            enable_symm_mem pre_warm_nccl enable_quant_communications
            enable_p2p_check enable_tp_lm_head_all_to_all enable_attn_tp_input_scattered""",
            "whole collectives lie between two boundaries, in one order on all ranks "
            "(executor/verdict.py)",
        ),
        *_read(
            """enable_flashinfer_allreduce_fusion flashinfer_allreduce_fusion_backend
            enforce_disable_flashinfer_allreduce_fusion enable_aiter_allreduce_fusion
            disable_aiter_allreduce_fusion_in_prefill disable_aiter_allreduce_fusion_in_decode""",
            "a reduction fused with its norm is one operator; it is chosen by the number of "
            "tokens, alike on all ranks (layers/layernorm.py)",
        ),
        *_read(
            """cuda_graph_config cuda_graph_backend_decode cuda_graph_max_bs_decode
            cuda_graph_bs_decode disable_decode_cuda_graph disable_cuda_graph
            disable_cuda_graph_padding enable_cudagraph_gc enable_profile_cuda_graph""",
            "graphs of decode steps have buffers of their own; nothing is suspended inside one",
        ),
        *_read(
            """cuda_graph_backend_prefill cuda_graph_max_bs_prefill cuda_graph_bs_prefill
            cuda_graph_prefill_max_context cuda_graph_max_seq_len_prefill
            disable_prefill_cuda_graph""",
            "prefills run eagerly: graphs have no boundaries",
        ),
        *_read(
            """swa_full_tokens_ratio disable_hybrid_swa_memory swa_prefix_tails
            enable_decoder_swa_bounded_replay""",
            "it sizes the pool of sliding windows; models with such a pool are refused when the "
            "server knows its model, unless it is switched off",
        ),
        *_read(
            """max_mamba_cache_size mamba_ssm_dtype mamba_max_states_per_path mamba_backend
            enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds
            mamba_full_memory_ratio mamba_radix_cache_strategy mamba_track_interval
            enable_int8_mamba_checkpoint int8_mamba_ckpt_size linear_attn_backend
            linear_attn_decode_backend linear_attn_prefill_backend linear_attn_verify_backend
            enable_linear_replayssm linear_replayssm_cache_len enable_linear_replayssm_spec""",
            "of models with linear attention or a state space, which are refused when the server "
            "knows its model; no other model reads it",
        ),
        *_read(
            """dsa_prefill_backend dsa_decode_backend dsa_paged_mqa_logits_backend dsa_topk_backend
            dsv4_prefill_backend dsv4_attn_backend dsa_triton_union enable_dsa_fused_indexer
            enable_deepseek_v4_fp4_indexer qsa_indexer_dtype enable_dsa_cache_layer_split
            ple_offload_embedding ple_offload_backend ple_offload_dir""",
            "of models with sparse attention, whose backend is refused when the server knows its "
            "model; no other model reads it",
        ),
        *_read(
            """enable_multimodal mm_attention_backend mm_enable_dp_encoder mm_process_config
            mm_processor_worker_num mm_io_worker_num allowed_media_domains
            media_url_max_file_size_mb mm_preprocess_cache_size_mb trust_mm_content_hashes
            limit_mm_data_per_request enable_mm_global_cache mm_global_cache_backend
            image_processor_backend disable_fast_image_processor mm_feature_transport
            enable_prefix_mm_cache enable_broadcast_mm_inputs_process language_model_only
            enable_precise_embedding_interpolation enable_adaptive_dispatch_to_encoder""",
            "of multimodal models, which are refused when the server knows its model; no other "
            "model reads it",
        ),
        *_read(
            """deepep_config deepep_mode deepep_v2_mode deepep_dispatcher_output_dtype fuseep_mode
            flashinfer_a2a_dispatch_type mooncake_ib_device""",
            "read only with an all-to-all backend, which is refused",
        ),
        *_read(
            """ep_num_redundant_experts ep_dispatch_algorithm init_expert_location""",
            "where experts lie is fixed at the start",
        ),
        *_read(
            """enable_deterministic_inference rl_on_policy_target""",
            "prompts are cut at a multiple of an alignment, which must fit in "
            "--flowprefill-max-chunk-tokens; checked at the start (adapter/unsupported.py)",
        ),
        *_read(
            """enable_dp_lm_head enable_dp_attention_local_control_broadcast
            enable_shared_experts_attn_tp enable_dense_mlp_attn_tp disable_attn_tp_gather
            dcp_comm_backend dcp_replicate_q_proj cp_strategy enable_cp_decode_attn_tp
            boundary_reduction enable_scattered_sconv""",
            "read only with kinds of parallelism that are refused",
        ),
        *_read(
            """enable_layerwise_nvtx_marker debug_cuda_graph debug_tensor_dump_layers
            debug_tensor_dump_input_file enable_mfu_metrics""",
            "it marks or counts what runs",
        ),
        *_read(
            "enable_page_major_kv_layout radix_cache_backend enable_session_radix_cache",
            "how the pool or the prefix tree is laid out; both are SGLang's own calls",
        ),
        *_read(
            "base_gpu_id gpu_id_step numa_node c128_page_size mlx_enable_sampling",
            "where the processes run",
        ),
    )


_NAMES = (
    # What a server is called, where it listens, what it logs and measures.
    """host port fastapi_root_path skip_server_warmup warmups enable_http2
    http2_max_concurrent_streams http2_initial_connection_window_size enable_http_worker_reuseport
    ssl_keyfile ssl_certfile ssl_ca_certs ssl_keyfile_password enable_ssl_refresh api_key
    admin_api_key served_model_name weight_version file_storage_path enable_cache_report log_level
    log_level_http log_requests log_requests_level log_requests_format log_requests_target
    uvicorn_access_log_exclude_prefixes crash_dump_folder show_time_cost smg_http_sidecar_port
    enable_metrics_for_all_schedulers load_snapshot_publish_interval
    tokenizer_metrics_custom_labels_header tokenizer_metrics_allowed_custom_labels
    extra_metric_labels bucket_time_to_first_token bucket_inter_token_latency
    bucket_e2e_request_latency prompt_tokens_buckets generation_tokens_buckets
    gc_warning_threshold_secs decode_log_interval enable_request_time_stats_logging
    kv_events_config load_publish_endpoint forward_pass_metrics_worker_id
    forward_pass_metrics_ipc_name enable_trace trace_modules otlp_traces_endpoint otlp_service_name
    export_metrics_to_file export_metrics_to_file_dir watchdog_timeout soft_watchdog_timeout
    sleep_on_idle gc_threshold grpc_response_timeout_secs grpc_worker_threads sidecar_args
    custom_sigquit_handler stat_loggers nccl_port dist_timeout dist_init_addr gated_launch_port
    node_rank pp_max_micro_batch_size pp_async_batch_depth engine_info_bootstrap_port
    detokenizer_worker_num enable_response_store"""
    # Tokenizing, templates, parsers, sampling, answers.
    """ tokenizer_path tokenizer_mode tokenizer_backend skip_tokenizer_init chat_template
    trust_request_chat_template hf_chat_template_name completion_template return_input_ids
    return_output_ids default_chat_template_kwargs strip_thinking_cache enable_strict_thinking
    tool_server sampling_defaults asr_max_buffer_seconds asr_max_concurrent_sessions
    preferred_sampling_params allow_auto_truncate stream_interval batch_notify_size
    stream_response_default_include_usage incremental_streaming_output reasoning_parser
    tool_call_parser grammar_backend constrained_json_whitespace_pattern
    constrained_json_disable_any_whitespace constrained_json_max_whitespace_cnt
    enable_dynamic_batch_tokenizer dynamic_batch_tokenizer_batch_size
    dynamic_batch_tokenizer_batch_timeout enable_tokenizer_batch_encode
    disable_tokenizer_batch_decode enable_custom_logit_processor enable_return_hidden_states
    return_hidden_states_mode sampling_mask_max_tokens disable_outlines_disk_cache random_seed
    enable_watermark watermark_config watermark_key watermark_key_b watermark_context_window
    watermark_mixing_probability watermark_max_probability watermark_default_enabled
    watermark_enforce_all return_aux_hidden_state_layer_ids aux_hidden_state_capture"""
    # Which model, and how its weights get into memory before anything is served.
    """ model_path load_format model_loader_extra_config trust_remote_code context_length revision
    model_impl model_config_parser json_model_override_args startup_weight_load_mode
    custom_weight_loader weight_loader_disable_mmap weight_loader_prefetch_checkpoints
    weight_loader_prefetch_num_threads weight_loader_drop_cache_after_load
    remote_instance_weight_loader_seed_instance_ip
    remote_instance_weight_loader_seed_instance_service_port
    remote_instance_weight_loader_send_weights_group_ports remote_instance_weight_loader_backend
    remote_instance_weight_loader_start_seed_via_transfer_engine modelexpress_config download_dir
    model_checksum delete_ckpt_after_loading decrypted_config_file decrypted_draft_config_file
    checkpoint_engine_wait_weights_before_ready enable_weights_cpu_backup
    enable_draft_weights_cpu_backup weight_cache_mode weight_cache_socket weight_cache_timeout"""
    # Bounds and cache policies of SGLang's own, which run as ever.
    """ max_queued_requests radix_eviction_policy radix_eviction_policy_config
    uses_mamba_radix_cache"""
    # Parameters of something that is off unless another setting, which has a rule, turns it on.
    """ prefill_delayer_max_delay_passes prefill_delayer_token_usage_low_watermark
    prefill_delayer_forward_passes_buckets prefill_delayer_wait_seconds_buckets
    prefill_delayer_queue_min_ratio prefill_delayer_max_delay_ms prefill_decode_interval_min_bs
    disable_priority_preemption default_priority_value abort_on_priority_when_disabled
    schedule_low_priority_values_first priority_scheduling_preemption_threshold torch_compile_max_bs
    speculative_draft_model_path speculative_draft_model_revision speculative_draft_load_format
    speculative_num_steps speculative_eagle_topk speculative_num_draft_tokens
    speculative_dflash_block_size speculative_dspark_block_size speculative_dspark_sps_table_path
    speculative_dspark_confidence_sts_path speculative_dspark_align_verify_tokens_to_graph_tier
    speculative_accept_threshold_single speculative_accept_threshold_acc
    speculative_use_rejection_sampling speculative_token_map speculative_attention_mode
    speculative_draft_attention_backend speculative_dsa_topk_backend
    speculative_draft_kv_cache_dtype speculative_draft_window_size speculative_moe_runner_backend
    speculative_moe_a2a_backend speculative_enable_w4a4_mxfp4_megamoe
    speculative_draft_model_quantization enable_multi_layer_eagle speculative_adaptive
    speculative_adaptive_config speculative_ngram_min_bfs_breadth speculative_ngram_max_bfs_breadth
    speculative_ngram_match_type speculative_ngram_max_trie_depth speculative_ngram_capacity
    speculative_ngram_external_corpus_path speculative_ngram_external_sam_budget
    speculative_ngram_external_corpus_max_tokens speculative_domino_candidate_pool_size
    speculative_use_block_verification speculative_draft_sink_size speculative_boundary_reduction
    uno_lora_path decoupled_spec_bind_endpoint decoupled_spec_connect_endpoints decoupled_spec_rank
    spec_trace_dir eplb_algorithm eplb_rebalance_num_iterations eplb_rebalance_layers_per_chunk
    eplb_min_rebalancing_utilization_threshold expert_distribution_recorder_buffer_size
    ep_join_rank_offset elastic_ep_scale_timeout hicache_host_memory_mode hicache_ratio hicache_size
    hicache_write_policy hicache_io_backend hicache_mem_layout hicache_storage_backend
    hicache_storage_prefetch_policy hicache_storage_backend_extra_config
    hicache_storage_prefetch_retry_poll_interval hicache_storage_prefetch_retry_max_attempts
    hicache_host_memory_fraction enable_linker_mla_dedup unified_cache_external_linker_backend
    unified_cache_external_linker_config hisparse_config enable_lora_overlap_loading max_lora_rank
    lora_target_modules max_loaded_loras max_loras_per_batch lora_eviction_policy lora_backend
    max_lora_chunk_size experts_shared_outer_loras lora_use_virtual_experts lora_strict_loading
    lora_drain_wait_threshold tbo_token_distribution_threshold offload_num_in_group
    offload_prefetch_step offload_mode lmcache_config_file flexkv_config_file kt_method kt_cpuinfer
    kt_threadpool_count kt_num_gpu_experts kt_max_deferred_experts_per_token dllm_algorithm_config
    dllm_fdfo disaggregation_transfer_backend disaggregation_bootstrap_port disaggregation_ib_device
    disaggregation_decode_enable_radix_cache disaggregation_decode_enable_offload_kvcache
    disaggregation_decode_retraction_backup num_reserved_decode_tokens
    disaggregation_decode_extra_slots disaggregation_decode_polling_interval
    disaggregation_enable_kv_checksum disaggregation_decode_host_receive_threshold
    disaggregation_decode_allocation_policy optimistic_prefill_attempts encoder_transfer_backend
    encoder_urls encoder_bootstrap_port encoder_register_urls pdmux_config_path sm_group_num
    kv_canary_sweep_interval paged_experts_num_resident enable_cp_tp_group_sharing"""
)
UNTOUCHED = frozenset(_NAMES.split())
"""Settings that a suspended prefill has nothing to do with."""

RULES: tuple[Rule, ...] = (*_MORE_RULES, *_kernels_and_sizes())
"""The first rule of a field that speaks of the value holds."""


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable of SGLang that is refused.

    Attributes:
        name: Of the variable.
        why: What would break.
    """

    name: str
    why: str


REFUSED_VARIABLES = (
    Variable("SGLANG_RUST_SERVER", "its requests pass by the hooks that read SLOs and arrivals"),
    Variable(
        "SGLANG_ENABLE_GRAPH_POOL_BORROW",
        "log-probabilities of a suspended prefill would lie in memory that graphs overwrite",
    ),
)


def rule_for(field: str, value: Any, rules: tuple[Rule, ...] = RULES) -> Rule | None:
    """Return what becomes of a setting at this value; None if nothing is to be said."""
    return next((rule for rule in rules if rule.field == field and rule.is_for(value)), None)


def is_classified(field: str) -> bool:
    """Tell whether the table speaks of a field of ``ServerArgs``."""
    is_note = field.startswith("_") and field.endswith("_explicitly_set")
    return is_note or field in UNTOUCHED or any(rule.field == field for rule in RULES)
