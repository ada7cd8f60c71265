"""States of a made-up scheduler, and an HTTP server that answers with them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Thread
from typing import Any

import msgspec

from sglang_flowprefill.api.state import (
    PAGE_PATH,
    STATE_PATH,
    BlockingState,
    DecodeSlice,
    PredictionState,
    PrefillSlice,
    PrefillState,
    RoundState,
    ServerState,
    SloClassState,
    WaitingState,
)

HOSTILE_ID = "<img src=x onerror=alert(1)>"


def sample_state(time_s: float = 1000.0, **changes: Any) -> ServerState:
    """A long prompt suspended at 40 % for a short one; two requests wait."""
    long_one = PrefillState(
        batch_id=7,
        request_ids=["long-prompt"],
        slo_class="documents",
        state="suspended",
        num_tokens=4000,
        num_boundaries=120,
        predicted_s=5.0,
        run_s=2.0,
        since_s=time_s - 0.25,
        slack_s=12.5,
        num_preemptions=3,
        held_bytes=48_000_000,
        is_out_of_memory=False,
    )
    short_one = msgspec.structs.replace(
        long_one,
        batch_id=8,
        request_ids=[HOSTILE_ID, "second"],
        slo_class="chat",
        state="running",
        num_tokens=64,
        predicted_s=0.2,
        run_s=0.15,
        since_s=time_s - 0.15,
        slack_s=-0.05,
        num_preemptions=0,
    )
    state = ServerState(
        version="1.2.3",
        policy="s-edf",
        granularity="operator",
        time_s=time_s,
        time_unix_s=1.8e9,
        started_s=-2720.0,
        num_rounds=1234,
        num_events={"arrival": 900, "completion": 800, "timer": 20},
        num_preemptions=55,
        num_resumes=54,
        num_prefills=700,
        num_cancelled=1,
        num_restarts=2,
        num_decode_steps=9000,
        num_waiting=2,
        num_decoding=5,
        suspended_bytes=48_000_000,
        rounds_per_s=12.5,
        history_s=10.0,
        classes=[
            SloClassState("chat", 500.0, 600, 1, 580, 551, 4, 0),
            SloClassState("documents", 20000.0, 100, 1, 90, 90, 0, 6),
        ],
        waiting=[
            WaitingState("w-1", "chat", 100, waited_s=0.1, slack_s=0.4),
            WaitingState("w-2", "documents", 5000, waited_s=2.0, slack_s=18.0),
        ],
        prefills=[long_one, short_one],
        slices=[
            PrefillSlice(6, "chat", time_s - 5.0, time_s - 4.8, "finished"),
            PrefillSlice(7, "documents", time_s - 4.0, time_s - 0.25, "yield"),
        ],
        rounds=[RoundState(time_s - 0.25, "arrival", "StartBatch", 0.0001)],
        decodes=[DecodeSlice(time_s - 0.24, time_s - 0.2, 5)],
        blocking=BlockingState(54, 0.0042, 0.0091, 0.0123),
        prediction=PredictionState(128, 0.083, -0.01),
    )
    return msgspec.structs.replace(state, **changes)


class FakeServer(ThreadingHTTPServer):
    """Serves the page, and whatever answer it is told to give for the state.

    Attributes:
        answers: What to answer next, the last one for ever: bodies, or ``(status, body)``.
        api_key: Wanted if not None.
        num_asked: Questions for the state so far.
        keys: ``Authorization`` of each of them.
    """

    daemon_threads = True

    def __init__(self, *answers: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.api_key: str | None = None
        self.num_asked = 0
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_answer(self, key: str | None) -> tuple[int, bytes]:
        """Return status and body for one question."""
        self.num_asked += 1
        self.keys.append(key)
        if self.api_key is not None and key != f"Bearer {self.api_key}":
            return 401, json.dumps({"error": "Unauthorized"}).encode()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return status, body if isinstance(body, bytes) else msgspec.json.encode(body)


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == STATE_PATH:
            status, body = self.server.next_answer(self.headers.get("Authorization"))
        elif path == PAGE_PATH:
            status, body = 200, files("sglang_flowprefill.api").joinpath("live.html").read_bytes()
        else:
            status, body = 404, b"{}"
        self.send_response(status)
        kind = "text/html" if path == PAGE_PATH else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def answering(*answers: Any) -> Iterator[FakeServer]:
    """Run a server until the block ends."""
    with FakeServer(*answers) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
