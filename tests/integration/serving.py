"""A real server for tests: started, asked, stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench.systems.engine import ServerOptions
from bench.systems.named import plan_launch
from bench.systems.servers import free_port, log_tail

START_TIMEOUT_S = 240.0
REQUEST_TIMEOUT_S = 240.0
FIRST_PLAIN_TOKEN, VOCABULARY = 20, 40_000


def tokens(num_tokens: int, seed: int) -> list[int]:
    """Draw a prompt that no other seed shares a prefix with."""
    rng = np.random.default_rng(seed)
    return rng.integers(FIRST_PLAIN_TOKEN, VOCABULARY, num_tokens).tolist()


@dataclass
class Server:
    """A running server and the ways to ask it."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def generate(self, input_ids: list[int], num_output_tokens: int = 1, **fields: Any) -> Any:
        """Ask ``/generate`` for a greedy continuation and return the parsed answer."""
        response = self.post("/generate", generate_body(input_ids, num_output_tokens, **fields))
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        """Send one request of any kind."""
        return httpx.post(self.url + path, json=body, headers=headers, timeout=REQUEST_TIMEOUT_S)

    def statistics(self) -> dict[str, Any]:
        """Return what the scheduler says of itself."""
        info = httpx.get(self.url + "/server_info", timeout=REQUEST_TIMEOUT_S).json()
        return info["internal_states"][0]["flowprefill"]

    def wait_until_idle(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until nothing is suspended, running or queued; return the statistics."""
        limit_s = time.monotonic() + timeout_s
        while True:
            statistics = self.statistics()
            if statistics["is_idle"]:
                return statistics
            assert time.monotonic() < limit_s, f"still busy: {statistics}"
            time.sleep(0.1)

    def require_healthy(self) -> None:
        """Assert that the server lives, without leaks or errors of any kind in its log."""
        self.require_no_leaks()
        assert "Traceback" not in self.log.read_text(errors="replace"), log_tail(self.log)

    def require_no_leaks(self) -> None:
        """Assert that the server lives and that SGLang's leak checks have found nothing."""
        assert self.process.poll() is None, log_tail(self.log)
        assert httpx.get(self.url + "/health", timeout=REQUEST_TIMEOUT_S).status_code == 200
        text = self.log.read_text(errors="replace")
        assert "leak" not in text.lower(), log_tail(self.log)


def generate_body(input_ids: list[int], num_output_tokens: int = 1, **fields: Any) -> Any:
    """Build a greedy ``/generate`` body; ``custom_params`` go where SGLang wants them."""
    sampling = {"temperature": 0, "max_new_tokens": num_output_tokens, "ignore_eos": True}
    if "custom_params" in fields:
        sampling["custom_params"] = fields.pop("custom_params")
    return {"input_ids": input_ids, "sampling_params": sampling, **fields}


@contextlib.contextmanager
def serving(
    system: str,
    folder: Path,
    *flags: str,
    dtype: str = "float32",
    model_path: str | None = None,
    **variables: str,
) -> Iterator[Server]:
    """Run a server of the bench's making until the block ends.

    Args:
        system: Key of ``bench.systems.named.SYSTEMS``.
        folder: Takes the log.
        flags: Added to the command line.
        dtype: float32 by default, since bfloat16 results depend on batching.
        model_path: None for the embedded model.
        variables: Added to the environment.
    """
    options = ServerOptions(model_path, dtype=dtype, use_prefix_cache=True, flags=flags)
    port = free_port()
    launch = plan_launch(system, options, port)
    log = folder / f"{system}-{port}.log"
    with running(launch.command, launch.environment() | variables, port, log) as server:
        yield server


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], port: int, log: Path
) -> Iterator[Server]:
    """Run a server by its command line until the block ends.

    Args:
        command: Serves on ``port`` of 127.0.0.1.
        environment: All of it, but for SGLang's leak checks, which are added.
        port: Where to ask.
        log: Takes what the server prints.
    """
    checks = {
        # SGLang's own leak checks, as strict as they get: a leak ends the server.
        "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
        "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**environment, **checks},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_healthy(server)
        yield server
    finally:
        _stop(process)


def run_python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with these arguments and environment variables."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )


def _wait_until_healthy(server: Server) -> None:
    limit_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < limit_s:
        assert server.process.poll() is None, log_tail(server.log)
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(server.url + "/health", timeout=10.0).status_code == 200:
                return
        time.sleep(0.3)
    raise AssertionError(f"not healthy after {START_TIMEOUT_S} s:\n{log_tail(server.log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10.0)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
