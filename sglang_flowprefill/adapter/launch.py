"""Starts SGLang's server with FlowPrefill on, and makes sure that it is on."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.enablement import is_enabled


def run_flowprefill_scheduler_process(*args: Any, **kwargs: Any) -> None:
    """Entry of the scheduler process: SGLang's own, after a check that the plugin took effect.

    Raises:
        SystemExit: SGLang would run its stock scheduler (plugin filtered out, another plugin's
            replacement, or a swallowed error).
    """
    from sglang.srt.managers import scheduler  # noqa: PLC0415 (scheduler process only)

    require_flowprefill_scheduler()
    scheduler.run_scheduler_process(*args, **kwargs)


def require_flowprefill_scheduler() -> None:
    """Load the plugins and make sure that SGLang's scheduler is ours.

    Raises:
        SystemExit: It is not; the message says what is.
    """
    from sglang.srt.managers import scheduler  # noqa: PLC0415 (before the plugins, which look)

    releases.startup().load_plugins()
    from sglang_flowprefill.adapter.serving.scheduler import FlowPrefillScheduler  # noqa: PLC0415

    if not is_enabled() or scheduler.Scheduler is not FlowPrefillScheduler:
        raise SystemExit(
            "flowprefill: error: SGLang would run its stock scheduler "
            f"({scheduler.Scheduler.__module__}.{scheduler.Scheduler.__qualname__}); check that "
            f"SGLANG_PLUGINS ({os.environ.get('SGLANG_PLUGINS', 'not set')}) lets 'flowprefill' in "
            "and that no other plugin replaces the scheduler"
        )


def launch(argv: Sequence[str], on_ready: Callable[[str, str], None]) -> None:
    """Serve until stopped.

    Args:
        argv: Command line without the program name.
        on_ready: Called with the address and the served model's name once requests are accepted.

    Raises:
        SystemExit: A flag is wrong, or FlowPrefill cannot run with this SGLang.
    """
    releases.startup().load_plugins()
    from sglang.srt.entrypoints.http_server import launch_server  # noqa: PLC0415 (after hooks)
    from sglang.srt.server_args import prepare_server_args  # noqa: PLC0415
    from sglang.srt.utils import kill_process_tree  # noqa: PLC0415

    server_args = prepare_server_args(list(argv))
    releases.startup().resolve(server_args)
    try:
        launch_server(
            server_args,
            run_scheduler_process_func=run_flowprefill_scheduler_process,
            launch_callback=lambda: on_ready(server_args.url(), server_args.model_path),
        )
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def profile_path(argv: Sequence[str]) -> Path:
    """Start an engine, which measures its prefill costs or finds them cached, and stop it.

    Args:
        argv: Command line without the program name.

    Returns:
        The file that holds them.

    Raises:
        SystemExit: A flag is wrong, or FlowPrefill cannot run with this SGLang.
    """
    releases.startup().load_plugins()
    from sglang.srt.entrypoints.engine import Engine  # noqa: PLC0415 (after hooks)
    from sglang.srt.server_args import prepare_server_args  # noqa: PLC0415

    class CheckedEngine(Engine):
        run_scheduler_process_func = staticmethod(run_flowprefill_scheduler_process)

    engine = CheckedEngine(server_args=prepare_server_args(list(argv)))
    try:
        state = engine.get_server_info()["internal_states"][0]["flowprefill"]
    finally:
        engine.shutdown()
    return Path(state["profile"])
