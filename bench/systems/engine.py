"""What the bench needs to know of an engine, whichever it is."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp

HOST = "127.0.0.1"

# FlowPrefill's switch and settings; no other server may inherit them from the shell.
_SWITCHES = "SGLANG_FLOWPREFILL"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What all systems of a comparison share.

    Attributes:
        model_path: Folder or name of the model; None takes the embedded model.
        device: SGLang's name of it; ``cpu`` adds this package's CPU defaults.
        dtype: Of weights and activations; None takes the default of the device.
        use_prefix_cache: Keep the engine's prefix cache on.
        slo_config: FlowPrefill's file of SLO classes; no other system reads one.
        flags: More flags, for every system.
        flags_for: More flags, by system.
        startup_timeout_s: How long a server may take until it is healthy.
    """

    model_path: str | None = None
    device: str = "cpu"
    dtype: str | None = None
    use_prefix_cache: bool = False
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
    keeps_switches: bool = False

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the server."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if self.keeps_switches or not name.startswith(_SWITCHES)
        }
        return inherited | dict(self.variables)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A request ready to send, encoded ahead of time so that sending costs no CPU.

    Attributes:
        path: Of the address to send it to.
        body: JSON.
        headers: Extra HTTP headers.
    """

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamState:
    """How far a request has come, by one line of its stream.

    Attributes:
        num_generated_tokens: Up to now.
        num_cached_tokens: Of the prompt, that a prefix cache held; None where it does not say.
    """

    num_generated_tokens: int
    num_cached_tokens: int | None = None


class StreamError(Exception):
    """The server answered, but not with the tokens asked for."""


class Engine(Protocol):
    """One kind of server. All of them answer ``/health`` with 200 once they serve."""

    @property
    def chunk_flag(self) -> str:
        """The flag that limits how many tokens of a prompt run in one forward pass."""

    def speaking_as(self, flags: Sequence[str]) -> "Engine":
        """Return the engine as clients must speak to it when it is started with these flags."""

    def launch(self, options: ServerOptions, flags: Sequence[str], port: int) -> Launch:
        """Decide how a server is started.

        Args:
            options: Shared by all systems.
            flags: Of this system.
            port: To listen on.

        Raises:
            FlowPrefillError: The embedded model is asked for and cannot be had.
            BenchError: The engine is not installed, or cannot run with these options.
        """

    def encode(
        self,
        prompt: Sequence[int],
        num_output_tokens: int,
        *,
        slo_ttft_s: float | None = None,
        slo_class: str | None = None,
        slo_tpot_s: float | None = None,
    ) -> GenerateRequest:
        """Encode a greedy streaming request for exactly ``num_output_tokens`` tokens.

        Args:
            prompt: Token ids.
            num_output_tokens: Tokens to generate; end-of-sequence is ignored.
            slo_ttft_s: TTFT objective to tell the server in its way, None to tell it none.
            slo_class: Class name to tell a server that knows classes.
            slo_tpot_s: TPOT objective to tell a server that knows one.
        """

    def read(self, chunk: Mapping[str, Any]) -> StreamState:
        """Read one line of the stream.

        Raises:
            StreamError: The line reports a failure.
        """

    async def info(self, session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
        """Ask a server for the part of its configuration that decides a measurement.

        Raises:
            ServerError: It does not answer.
        """


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is, and how to talk to it.

    Attributes:
        url: Base address.
        engine: What answers there.
    """

    url: str
    engine: Engine
