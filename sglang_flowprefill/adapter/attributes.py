"""Every attribute of a running SGLang that this package reads or writes, with what for.

``compat.py`` lists symbols, which are looked up when the package is loaded. Attributes exist only
on live objects: those of the scheduler and its model runner are checked when the scheduler is
complete, those of a request and of a batch on the first one of the warm-up, before anything is
served.
``tests/upstream/test_attributes.py`` compares this table with what the source touches.

If SGLang renames one, this table says so at start-up and where it is used is one search away:
only ``serving/`` and ``model/`` touch live objects.
"""

from collections.abc import Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.errors import UnsupportedSGLangError

SCHEDULER = "Scheduler"
REQUEST = "Req"
BATCH = "ScheduleBatch"
MODEL_RUNNER = "ModelRunner"

ATTRIBUTES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        SCHEDULER: {
            "_add_request_to_queue": "requests that start over",
            "_engine_paused": "whether anything may run",
            "_record_scheduler_state_for_paused_engine": "metrics of a pause",
            "_release_aborted_request": "a request that ends early",
            "_sched_idled": "SGLang's own account of idle passes",
            "chunked_prefill_size": "length of a chunk, while a batch is formed",
            "chunked_req": "the one prompt in chunks, while a batch is formed",
            "cur_batch_for_debug": "what SGLang's watchdog looks at",
            "device": "where the model is",
            "enable_overlap": "must be off",
            "flush_cache": "after a warm-up",
            "get_new_batch_prefill": "forms a batch",
            "gracefully_exit": "end of the loop",
            "grammar_manager": "requests that wait for a grammar",
            "ingest_requests": "takes messages in",
            "invariant_checker": "leak checks",
            "ipc_channels": "sockets",
            "is_fully_idle": "whether a request is anywhere",
            "is_hybrid_ssm": "refused models",
            "is_hybrid_swa": "refused models",
            "load_inquirer": "load reports",
            "max_req_input_len": "what a warm-up may use",
            "max_running_requests": "what a warm-up may use",
            "max_total_num_tokens": "what a warm-up may use",
            "maybe_send_health_check_signal": "answers a health check",
            "model_config": "family and sizes of the model",
            "new_token_ratio_tracker": "memory that admission reserves",
            "on_idle": "housekeeping",
            "process_batch_result": "what a forward pass brings",
            "process_input_requests": "messages that were held back",
            "req_to_token_pool": "rows of requests",
            "return_health_check_ipcs": "health checks that wait for an answer",
            "run_batch": "a forward pass",
            "running_batch": "requests that decode",
            "scheduler_stage_metrics": "time of a forward pass",
            "send_abort_output": "answers a request that ends early",
            "server_args": "settings",
            "stash_chunked_request": "publishes a chunk's prefix",
            "token_to_kv_pool_allocator": "free KV slots",
            "tp_group": "tensor-parallel ranks",
            "tp_worker": "the model runner",
            "tree_cache": "the prefix cache",
            "update_running_batch": "memory of a decode step",
            "waiting_queue": "the queue",
        },
        MODEL_RUNNER: {
            "attn_backend": "per-forward state of attention",
            "device": "where the model is",
            "dtype": "what times and memory depend on",
            "model": "boundaries are put on it",
            "model_config": "its sizes",
        },
        REQUEST: {
            "extend_end": "length that a forward pass reaches",
            "extend_len": "tokens of a forward pass",
            "finished": "whether it has its last token",
            "finished_reason": "why it ended",
            "full_untruncated_fill_ids": "its whole prompt",
            "inflight_middle_chunks": "SGLang's count of chunks",
            "init_next_round_input": "prefix match",
            "kv": "its KV slots",
            "kv.cache_protected_len": "KV slots that the prefix cache keeps",
            "kv.kv_allocated_len": "its KV slots",
            "origin_input_ids": "its prompt",
            "output_ids": "tokens so far",
            "prefix_len": "its cached prefix",
            "reset_for_retract": "starting over",
            "rid": "its name",
            "sampling_params": "limits and objective",
            "time_stats": "traces",
            "time_stats.trace_ctx": "traces",
            "to_finish": "marked as aborted",
        },
        BATCH: {
            "batch_is_full": "whether others may join",
            "check_decode_mem": "memory of a decode step",
            "chunked_req": "the prompt that needs more passes",
            "filter_batch": "leaves out who has ended",
            "is_empty": "whether anybody decodes",
            "is_prefill_only": "whether anybody decodes",
            "launch_ts": "prefill time in SGLang's metrics",
            "merge_batch": "joins who decodes",
            "reqs": "its requests",
        },
    }
)
"""By the class of the object; dotted names are attributes of attributes."""


def require_attributes(owner: str, live: Any) -> None:
    """Check one live object, on the release that the table is for.

    Args:
        owner: Key of ``ATTRIBUTES``.
        live: The object.

    Raises:
        UnsupportedSGLangError: Names every attribute that it lacks.
    """
    if releases.installed_version() != releases.RELEASES[-1].version:
        return  # an older release's own module gives the adapter its names
    missing = [name for name in ATTRIBUTES[owner] if not _has(live, name)]
    if missing:
        raise UnsupportedSGLangError(
            f"SGLang's {owner} has no {', '.join(missing)}: this release of sglang-flowprefill was "
            f"made for SGLang {releases.RELEASES[-1].version} as published; reinstall it, or serve "
            "without FlowPrefill (python -m sglang.launch_server)"
        )


def _has(live: Any, name: str) -> bool:
    try:
        attrgetter(name)(live)
    except AttributeError:
        return False
    return True
