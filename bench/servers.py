"""Servers under test: start one, wait until it serves, stop all of its processes.

Every system gets the same model, device, attention backend and memory flags, from one place.
What differs is the system itself: ``flowprefill`` is this package's launcher;
``flowprefill-fcfs`` is the same engine and kernels without preemption, which tells the gain of
scheduling apart from the gain of faster kernels; ``stock`` is SGLang's, with scheduling as SGLang
chooses it (overlap, chunked prefill); ``stock-tuned`` is stock without both, which on a CPU gives
it earlier first tokens.
"""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.client import encode_request, get_json, http_session, timed_generate
from bench.errors import ServerError
from bench.prompts import UniquePrompts
from bench.provenance import without_folders
from sglang_flowprefill.cpu.defaults import cpu_environment, cpu_server_defaults
from sglang_flowprefill.cpu.embedded_model import embedded_model_path

HOST = "127.0.0.1"

# FlowPrefill's switch and settings; a stock server must not inherit them from the shell.
_SWITCHES = "SGLANG_FLOWPREFILL"

_WARM_UP_TOKENS = (16, 128, 512, 2048)
_WARM_UP_LIMIT_S = 900.0  # the longest prompt of a workload, on a slow machine
_WARM_UP_SEED = 2**32 - 1  # prompts that no replay with a usual seed repeats
_HEALTH_INTERVAL_S = 0.5
_STOP_TIMEOUT_S = 15.0
_LOG_TAIL_LINES = 25

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


@dataclass(frozen=True, slots=True)
class System:
    """A way to start a server.

    Attributes:
        module: Run by ``python -m``.
        flags: That make it this system.
        is_flowprefill: Whether FlowPrefill's variables may reach it.
    """

    module: str
    flags: tuple[str, ...] = ()
    is_flowprefill: bool = False


SYSTEMS: Mapping[str, System] = {
    "flowprefill": System("sglang_flowprefill.launch_server", is_flowprefill=True),
    "flowprefill-fcfs": System(
        "sglang_flowprefill.launch_server", ("--flowprefill-policy", "fcfs"), is_flowprefill=True
    ),
    "stock": System("sglang.launch_server"),
    "stock-tuned": System(
        "sglang.launch_server", ("--disable-overlap-schedule", "--chunked-prefill-size", "-1")
    ),
}


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What all systems of a comparison share.

    Attributes:
        model_path: Folder or name of the model; None takes the embedded model.
        device: SGLang's name of it; ``cpu`` adds this package's CPU defaults.
        dtype: Of weights and activations; None takes the default of the device.
        use_radix_cache: Keep SGLang's prefix cache on.
        slo_config: FlowPrefill's file of SLO classes; no other system reads one.
        flags: More flags, for every system.
        flags_for: More flags, by system.
        startup_timeout_s: How long a server may take until it is healthy.
    """

    model_path: str | None = None
    device: str = "cpu"
    dtype: str | None = None
    use_radix_cache: bool = False
    slo_config: Path | None = None
    flags: tuple[str, ...] = ()
    flags_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    startup_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Launch:
    """A server's command line and environment, before it runs.

    Attributes:
        command: Argument vector.
        variables: Environment variables set on top of the bench's own.
        keeps_switches: Whether FlowPrefill's own variables are passed on.
    """

    command: tuple[str, ...]
    variables: Mapping[str, str]
    keeps_switches: bool

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the server."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if self.keeps_switches or not name.startswith(_SWITCHES)
        }
        return inherited | dict(self.variables)


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """How a server was started and configured, without folders of this machine.

    Attributes:
        command: Empty for a server that somebody else started.
        environment: Variables set for it on top of the bench's own.
        server_info: What it says of its own configuration.
    """

    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    server_info: Mapping[str, Any] = field(default_factory=dict)


def plan_launch(name: str, options: ServerOptions, port: int) -> Launch:
    """Decide how a system is started.

    Raises:
        FlowPrefillError: The embedded model is asked for and cannot be had.
    """
    system = SYSTEMS[name]
    model_path = options.model_path or str(embedded_model_path(options.dtype or "bfloat16"))
    flags = ["--model-path", model_path, "--host", HOST, "--port", str(port)]
    flags += ["--device", options.device]
    flags += ["--dtype", options.dtype] if options.dtype else []
    flags += [] if options.use_radix_cache else ["--disable-radix-cache"]
    if system.is_flowprefill and options.slo_config is not None:
        flags += ["--flowprefill-slo-config", str(options.slo_config)]
    flags += [*system.flags, *options.flags, *options.flags_for.get(name, ())]
    variables: dict[str, str] = {}
    if options.device == "cpu":
        flags += cpu_server_defaults(flags)
        defaults = cpu_environment(model_path)
        variables = {name: os.environ.get(name, value) for name, value in defaults.items()}
    return Launch(
        command=(sys.executable, "-m", system.module, *flags),
        variables=variables,
        keeps_switches=system.is_flowprefill,
    )


class RunningServer:
    """A server process of ours. Made by ``running_server`` only.

    Attributes:
        url: Base address.
        description: How it was started and configured.
    """

    def __init__(self, name: str, url: str, process: Process, log: Path) -> None:
        self.url = url
        self.description = ServerDescription()
        self._name = name
        self._process = process
        self._log = log

    def check_alive(self) -> None:
        """Tell a finished process apart from a server that serves badly.

        Raises:
            ServerError: It has ended; the message holds the end of its log.
        """
        if self._process.returncode is not None:
            raise ServerError(
                f"{self._name} ended with status {self._process.returncode}; its log "
                f"{self._log} ends with:\n{log_tail(self._log)}"
            )

    async def wait_until_healthy(self, session: aiohttp.ClientSession, timeout_s: float) -> None:
        """Poll ``/health`` until it answers 200.

        Raises:
            ServerError: The process ended, or the time is over.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not await _is_healthy(session, self.url):
                    self.check_alive()
                    await asyncio.sleep(_HEALTH_INTERVAL_S)
                return
        raise ServerError(
            f"{self._name} was not healthy after {timeout_s:.0f} s; its log {self._log} ends "
            f"with:\n{log_tail(self._log)}"
        )

    async def stop(self) -> None:
        """Ask the launcher to end, then kill whatever is left of its process group."""
        if self._process.returncode is None:
            # Not the whole group: a launcher whose scheduler goes first takes that for a crash.
            with suppress(ProcessLookupError, TimeoutError):
                self._process.terminate()
                await asyncio.wait_for(self._process.wait(), _STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


@asynccontextmanager
async def running_server(
    name: str, options: ServerOptions, log: Path, longest_prompt: int
) -> AsyncIterator[RunningServer]:
    """Start a system, wait until it is healthy and warm, and stop it at the end.

    Args:
        name: Key of ``SYSTEMS``.
        options: Shared by all systems.
        log: File that takes the server's output.
        longest_prompt: Tokens of the longest warm-up prompt; the longest of the workload, so
            that no measured request is the first to touch that much memory.

    Raises:
        ServerError: It did not come up, or died before the end.
    """
    port = free_port()
    launch = plan_launch(name, options, port)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *launch.command,
            env=launch.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # its own group, so that all of it can be killed
        )
    server = RunningServer(name, f"http://{HOST}:{port}", process, log)
    try:
        async with http_session() as session:
            await server.wait_until_healthy(session, options.startup_timeout_s)
            await warm_up(session, server.url, longest_prompt)
            server.description = ServerDescription(
                command=("python", *without_folders(launch.command[1:])),
                environment=launch.variables,
                server_info=await server_info(session, server.url),
            )
        yield server
        server.check_alive()
    finally:
        await server.stop()


async def warm_up(session: aiohttp.ClientSession, url: str, longest_prompt: int) -> None:
    """Send prompts of several lengths, one after the other, untimed.

    Raises:
        ServerError: One of them fails.
    """
    prompts = UniquePrompts(_WARM_UP_SEED)
    lengths = {n for n in _WARM_UP_TOKENS if n < longest_prompt} | {longest_prompt}
    for num_tokens in sorted(lengths):
        request = encode_request(prompts.draw(num_tokens), num_output_tokens=2)
        timing = await timed_generate(session, url, request, _WARM_UP_LIMIT_S)
        if timing.error is not None:
            raise ServerError(f"warm-up of {url} with {num_tokens} tokens: {timing.error}")


async def server_info(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """Ask a server for the part of its configuration that decides a measurement.

    Raises:
        ServerError: It does not answer.
    """
    info = await get_json(session, f"{url}/server_info")
    known = {key: info[key] for key in _INFO_FIELDS if key in info}
    return {
        key: without_folders([value])[0] if isinstance(value, str) else value
        for key, value in known.items()
    }


def free_port() -> int:
    """Return a TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def log_tail(log: Path) -> str:
    """Return the last lines of a log file."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL_LINES:])


async def _is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
