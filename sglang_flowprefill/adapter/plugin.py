"""The entry point that SGLang loads in every process (group ``sglang.srt.plugins``).

Not enabled: returns at once, SGLang stays stock. Enabled: verifies the installed SGLang, then
registers hooks, or, if only our kernels are asked for, what brings in those. SGLang logs and
swallows exceptions of plugins, which would leave a stock server running under our name;
``SystemExit`` is the one thing that it lets through.
"""

import multiprocessing
import sys
from functools import cache

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.cpu.defaults import is_cpu_only
from sglang_flowprefill.enablement import enable, is_enabled, is_kernels_only
from sglang_flowprefill.errors import UnsupportedSGLangError


def register() -> None:
    """Register FlowPrefill's hooks if it is enabled.

    Raises:
        SystemExit: The installed SGLang does not fit.
    """
    if is_enabled() or is_kernels_only():
        _register()


@cache
def _register() -> None:
    """Register once: a patched SGLang may ask for us in more than one place of a process."""
    from sglang_flowprefill.adapter import compat  # noqa: PLC0415 (nothing when not enabled)

    try:
        compat.verify_version()
        compat.verify_symbols()
        if is_kernels_only():
            _register_kernels()
            return
        enable()  # completes the environment where only the main variable was set by hand
        _register_settings()
        if "sglang.srt.managers.scheduler" in sys.modules:
            _register_scheduler()
        if multiprocessing.parent_process() is None or _hosts_an_engine():
            compat.verify_symbols(compat.UPSTREAM_HTTP)
            _register_http()
    except UnsupportedSGLangError as error:
        raise SystemExit(f"flowprefill: error: {error}") from error


def _hosts_an_engine() -> bool:
    """A child process may build an ``sglang.Engine`` of its own."""
    return "sglang.srt.entrypoints.engine" in sys.modules


def _register_kernels() -> None:
    """Put our CPU kernels under SGLang's own scheduler, and change nothing else."""
    if "sglang.srt.managers.scheduler" not in sys.modules:
        return
    from sglang_flowprefill.adapter.model.kernels_only import KernelsOnly  # noqa: PLC0415
    from sglang_flowprefill.adapter.releases.hooks import HookRegistry, HookType  # noqa: PLC0415

    method_of_model = releases.startup().MODEL_READY_METHOD
    if method_of_model is None:
        raise UnsupportedSGLangError(
            f"SGLANG_FLOWPREFILL=kernels does not work with SGLang {releases.installed_version()}: "
            "unset it, or set it to 1"
        )
    _register_kv_write()
    kernels = KernelsOnly()
    for method, hook in (
        (f"model_executor.model_runner.ModelRunner.{method_of_model}", kernels.on_model_ready),
        ("managers.scheduler.Scheduler.process_input_requests", kernels.on_messages),
    ):
        HookRegistry.register(f"sglang.srt.{method}", hook, HookType.AFTER)


def _register_settings() -> None:
    from sglang_flowprefill.adapter import flags  # noqa: PLC0415
    from sglang_flowprefill.adapter.releases.hooks import HookRegistry, HookType  # noqa: PLC0415

    server_args = "sglang.srt.server_args.ServerArgs"
    settings_method = releases.startup().SETTINGS_METHOD
    HookRegistry.register(f"{server_args}.add_cli_args", flags.add_flags, HookType.AFTER)
    HookRegistry.register(f"{server_args}.from_cli_args", flags.read_flags, HookType.AROUND)
    HookRegistry.register(
        f"{server_args}.{settings_method}", flags.prepare_settings, HookType.BEFORE
    )


def _register_scheduler() -> None:
    from sglang_flowprefill.adapter.model.attention import register_tiled_attention  # noqa: PLC0415
    from sglang_flowprefill.adapter.releases.hooks import HookRegistry, HookType  # noqa: PLC0415
    from sglang_flowprefill.adapter.serving.scheduler import FlowPrefillScheduler  # noqa: PLC0415

    register_tiled_attention()
    _register_kv_write()
    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler", FlowPrefillScheduler, HookType.REPLACE
    )


def _register_kv_write() -> None:
    if not is_cpu_only():
        return
    from sglang_flowprefill.adapter.model.cpu_ops import write_kv  # noqa: PLC0415
    from sglang_flowprefill.adapter.releases.hooks import HookRegistry, HookType  # noqa: PLC0415

    HookRegistry.register(
        "sglang.srt.mem_cache.memory_pool._set_kv_buffer_impl", write_kv, HookType.AROUND
    )


def _register_http() -> None:
    from sglang_flowprefill.adapter.http import hooks, live_routes  # noqa: PLC0415
    from sglang_flowprefill.adapter.releases.hooks import HookRegistry, HookType  # noqa: PLC0415

    HookRegistry.register(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        hooks.stamp_request,
        HookType.AROUND,
    )
    HookRegistry.register(
        "sglang.srt.entrypoints.openai.serving_base.OpenAIServingBase._parse_model_parameter",
        hooks.whole_model_name,
        HookType.AROUND,
    )
    if releases.startup().HAS_ABORT_HOOK:
        HookRegistry.register(
            "sglang.srt.managers.tokenizer_manager.TokenizerManager._handle_abort_finish_reason",
            hooks.report_rejection,
            HookType.BEFORE,
        )
    HookRegistry.register(
        "sglang.srt.entrypoints.http_server.launch_server", hooks.add_middleware, HookType.BEFORE
    )
    HookRegistry.register(
        "sglang.srt.utils.auth.decide_request_auth", live_routes.allow_page, HookType.AROUND
    )
