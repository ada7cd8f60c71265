"""Servers under test: start one, wait until it serves, stop all of its processes."""

import asyncio
import os
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import ServerError
from bench.results.provenance import without_folders
from bench.systems.client import http_session, timed_prompt
from bench.systems.engine import HOST, Endpoint, ServerOptions
from bench.systems.named import plan_launch, system_named
from bench.workloads.prompts import UniquePrompts

_WARM_UP_TOKENS = (16, 128, 512, 2048)
_WARM_UP_LIMIT_S = 900.0  # the longest prompt of a workload, on a slow machine
_WARM_UP_SEED = 2**32 - 1  # prompts that no replay with a usual seed repeats
_HEALTH_INTERVAL_S = 0.5
_STOP_TIMEOUT_S = 15.0
_LOG_TAIL_LINES = 25


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


class RunningServer:
    """A server process of ours. Made by ``running_server`` only.

    Attributes:
        endpoint: Where it is, and how to talk to it.
        description: How it was started and configured.
    """

    def __init__(self, name: str, endpoint: Endpoint, process: Process, log: Path) -> None:
        self.endpoint = endpoint
        self.description = ServerDescription()
        self._name = name
        self._process = process
        self._log = log

    @property
    def process_id(self) -> int:
        """Of its launcher, the parent of all its processes."""
        return self._process.pid

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
                while not await _is_healthy(session, self.endpoint.url):
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
        name: Of a system (``bench.systems.named``).
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
    endpoint = Endpoint(f"http://{HOST}:{port}", system_named(name).engine)
    server = RunningServer(name, endpoint, process, log)
    try:
        async with http_session() as session:
            await server.wait_until_healthy(session, options.startup_timeout_s)
            await warm_up(session, endpoint, longest_prompt)
            server.description = ServerDescription(
                command=tuple(without_folders(launch.command)),
                environment=dict(
                    zip(
                        launch.variables, without_folders([*launch.variables.values()]), strict=True
                    )
                ),
                server_info=await endpoint.engine.info(session, endpoint.url),
            )
        yield server
        server.check_alive()
    finally:
        await server.stop()


async def warm_up(session: aiohttp.ClientSession, server: Endpoint, longest_prompt: int) -> None:
    """Send prompts of several lengths, one after the other, untimed.

    Raises:
        ServerError: One of them fails.
    """
    prompts = UniquePrompts(_WARM_UP_SEED)
    lengths = {n for n in _WARM_UP_TOKENS if n < longest_prompt} | {longest_prompt}
    for num_tokens in sorted(lengths):
        prompt = prompts.draw(num_tokens)
        await timed_prompt(session, server, prompt, _WARM_UP_LIMIT_S, num_output_tokens=2)


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
