"""Open-loop replay: every request is sent at its time, whatever became of the others.

The client's own lateness is part of every row, because a client that falls behind turns an open
loop into a closed one and flatters the server. Rows are complete: a request that failed or timed
out has a row with its error, and counts as a miss.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import aiohttp

from bench.replaying.metrics import is_met
from bench.replaying.row import RequestRow
from bench.systems.client import StreamTiming, http_session, timed_generate
from bench.systems.engine import Endpoint, Engine, GenerateRequest
from bench.workloads.prompts import UniquePrompts
from bench.workloads.request import TraceRequest

# Tasks and sockets are set up before the first request is due.
_LEAD_S = 0.02

# How often a replay with a goal looks whether the goal is still within reach; and how much later
# than its objective a request must be, so that an answer under way is not called a miss.
_WATCH_INTERVAL_S = 0.5
_GRACE_S = 0.5
_GIVEN_UP = "given up: the goal of the replay was out of reach"


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to replay.

    Attributes:
        original_output_lengths: Generate as many tokens as the trace says; otherwise 1, which
            isolates prefills.
        send_slo: Tell the server each request's objective by header.
        send_class: Tell it the class too; a FlowPrefill server refuses classes that its own
            configuration lacks.
        slo_tpot_s: Mean time per output token after the first that a request must also keep;
            None asks for TTFT only.
        seed: Of the prompts.
        drain_timeout_s: How long after the last arrival answers are waited for. It bounds the
            replay: whatever is unanswered then is a timeout.
    """

    original_output_lengths: bool = False
    send_slo: bool = True
    send_class: bool = True
    slo_tpot_s: float | None = None
    seed: int = 0
    drain_timeout_s: float = 300.0


async def replay(
    server: Endpoint,
    requests: Sequence[TraceRequest],
    slos_s: Mapping[str, float],
    options: ReplayOptions,
    on_finished: Callable[[RequestRow], None] = lambda _row: None,
) -> list[RequestRow]:
    """Send every request at its time and return one row each, in workload order.

    Args:
        server: Where it is, and how to talk to it.
        requests: At least one, in order of arrival; the first is sent at once.
        slos_s: TTFT objective of every class that occurs.
        options: How to replay.
        on_finished: Called as each request ends, for progress.
    """
    return await _Replay(server, requests, slos_s, options, on_finished).run()


async def replay_towards(
    server: Endpoint,
    requests: Sequence[TraceRequest],
    slos_s: Mapping[str, float],
    options: ReplayOptions,
    *,
    goal: float,
    on_finished: Callable[[RequestRow], None] = lambda _row: None,
) -> tuple[list[RequestRow], bool]:
    """Replay, but give up as soon as ``goal``, a share of all requests, is out of reach.

    A request that waits for longer than its objective is a miss before it is answered. What is
    still open when the replay is given up is cancelled.

    Returns:
        The rows, one per request, and False; or the rows of misses and of requests that had
        ended, and True.
    """
    running = _Replay(server, requests, slos_s, options, on_finished)
    whole = asyncio.ensure_future(running.run())
    try:
        while not whole.done():
            await asyncio.wait({whole}, timeout=_WATCH_INTERVAL_S)
            if not whole.done() and running.most_attainable() < goal:
                return running.known_rows(), True
        return whole.result(), False
    finally:
        whole.cancel()
        await asyncio.gather(whole, return_exceptions=True)


class _Replay:
    """One replay under way."""

    def __init__(
        self,
        server: Endpoint,
        requests: Sequence[TraceRequest],
        slos_s: Mapping[str, float],
        options: ReplayOptions,
        on_finished: Callable[[RequestRow], None],
    ) -> None:
        self._server = server
        self._requests = requests
        self._slos_s = slos_s
        self._options = options
        self._on_finished = on_finished
        self._rows: list[RequestRow | None] = [None] * len(requests)
        prompts = UniquePrompts(options.seed)
        self._encoded = [
            _encode(server.engine, request, prompts, slos_s, options) for request in requests
        ]
        self._start_s = perf_counter() + _LEAD_S
        span_s = requests[-1].arrival_s - requests[0].arrival_s
        self._deadline_s = self._start_s + span_s + options.drain_timeout_s

    async def run(self) -> list[RequestRow]:
        """Send everything, and wait for all of it."""
        async with http_session() as session:
            sending = (self._send(i, session) for i in range(len(self._requests)))
            return list(await asyncio.gather(*sending))

    def known_rows(self) -> list[RequestRow]:
        """Return a row for every request whose fate is known: ended, or already too late."""
        now_s = perf_counter()
        overdue = [i for i, row in enumerate(self._rows) if row is None and self._is_late(i, now_s)]
        rows = [row for row in self._rows if row is not None]
        late = [self._row(i, StreamTiming(self._due_s(i), error=_GIVEN_UP)) for i in overdue]
        return sorted([*rows, *late], key=lambda row: row.index)

    def most_attainable(self) -> float:
        """Return the share that will have met its objective if all that is open does."""
        return 1 - sum(not is_met(row) for row in self.known_rows()) / len(self._requests)

    def _is_late(self, index: int, now_s: float) -> bool:
        slo_s = self._slos_s[self._requests[index].slo_class]
        # A stream that has its first token already and goes on is not told apart from one that
        # has none, so this holds only for single tokens.
        return self._num_output_tokens(index) == 1 and now_s - self._due_s(index) > slo_s + _GRACE_S

    def _due_s(self, index: int) -> float:
        return self._start_s + self._requests[index].arrival_s - self._requests[0].arrival_s

    def _num_output_tokens(self, index: int) -> int:
        return _num_output_tokens(self._requests[index], self._options)

    async def _send(self, index: int, session: aiohttp.ClientSession) -> RequestRow:
        # The event loop's timer may fire a clock tick early; an open loop never sends early.
        while (wait_s := self._due_s(index) - perf_counter()) > 0.0:  # noqa: ASYNC110 (time)
            await asyncio.sleep(wait_s)
        limit_s = max(0.0, self._deadline_s - perf_counter())
        timing = await timed_generate(session, self._server, self._encoded[index], limit_s)
        row = self._row(index, timing)
        self._rows[index] = row
        self._on_finished(row)
        return row

    def _row(self, index: int, timing: StreamTiming) -> RequestRow:
        request = self._requests[index]
        return RequestRow(
            index=index,
            slo_class=request.slo_class,
            num_input_tokens=request.num_input_tokens,
            num_output_tokens=self._num_output_tokens(index),
            slo_ttft_s=self._slos_s[request.slo_class],
            scheduled_s=self._due_s(index) - self._start_s,
            sent_s=timing.sent_s - self._start_s,
            first_token_s=_relative(timing.first_token_s, self._start_s),
            finished_s=_relative(timing.finished_s, self._start_s),
            num_generated_tokens=timing.num_generated_tokens,
            error=timing.error,
            slo_tpot_s=self._options.slo_tpot_s,
        )


def _encode(
    engine: Engine,
    request: TraceRequest,
    prompts: UniquePrompts,
    slos_s: Mapping[str, float],
    options: ReplayOptions,
) -> GenerateRequest:
    return engine.encode(
        prompts.draw(request.num_input_tokens, request.prefix),
        _num_output_tokens(request, options),
        slo_ttft_s=slos_s[request.slo_class] if options.send_slo else None,
        slo_class=request.slo_class if options.send_class else None,
        slo_tpot_s=options.slo_tpot_s if options.send_slo else None,
    )


def _num_output_tokens(request: TraceRequest, options: ReplayOptions) -> int:
    return request.num_output_tokens if options.original_output_lengths else 1


def _relative(time_s: float | None, start_s: float) -> float | None:
    return None if time_s is None else time_s - start_s
