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

from bench.client import http_session, timed_generate
from bench.engines.engine import Endpoint, Engine, GenerateRequest
from bench.prompts import UniquePrompts
from bench.workloads.request import TraceRequest

# Tasks and sockets are set up before the first request is due.
_LEAD_S = 0.02


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to replay.

    Attributes:
        original_output_lengths: Generate as many tokens as the trace says; otherwise 1, which
            isolates prefills.
        send_slo: Tell the server each request's objective by header.
        send_class: Tell it the class too; a FlowPrefill server refuses classes that its own
            configuration lacks.
        seed: Of the prompts.
        drain_timeout_s: How long after the last arrival answers are waited for. It bounds the
            replay: whatever is unanswered then is a timeout.
    """

    original_output_lengths: bool = False
    send_slo: bool = True
    send_class: bool = True
    seed: int = 0
    drain_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One replayed request. Times are seconds since the start of the replay.

    Attributes:
        index: Position in the workload.
        slo_class: Its class.
        num_input_tokens: Prompt length.
        num_output_tokens: Tokens asked for.
        slo_ttft_s: Its objective.
        scheduled_s: When it was due to be sent.
        sent_s: When it was sent.
        first_token_s: When its first token arrived, None if it never did.
        finished_s: When its stream ended or failed.
        num_generated_tokens: As the server counted them.
        error: Why it failed, None if it was served in full.
    """

    index: int
    slo_class: str
    num_input_tokens: int
    num_output_tokens: int
    slo_ttft_s: float
    scheduled_s: float
    sent_s: float
    first_token_s: float | None
    finished_s: float | None
    num_generated_tokens: int
    error: str | None

    @property
    def ttft_s(self) -> float | None:
        """Send to first token; None for a request that failed, even after its first token."""
        if self.error is not None or self.first_token_s is None:
            return None
        return self.first_token_s - self.sent_s

    @property
    def ttft_from_schedule_s(self) -> float | None:
        """The same from the scheduled send: charges the client's lateness to the server."""
        return None if self.ttft_s is None else self.ttft_s + self.lateness_s

    @property
    def lateness_s(self) -> float:
        """How far behind its schedule the client was."""
        return self.sent_s - self.scheduled_s


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
    prompts = UniquePrompts(options.seed)
    encoded = [_encode(server.engine, request, prompts, slos_s, options) for request in requests]
    first_s = requests[0].arrival_s
    start_s = perf_counter() + _LEAD_S
    deadline_s = start_s + requests[-1].arrival_s - first_s + options.drain_timeout_s

    async def send(index: int, session: aiohttp.ClientSession) -> RequestRow:
        request = requests[index]
        due_s = start_s + request.arrival_s - first_s
        # The event loop's timer may fire a clock tick early; an open loop never sends early.
        while (wait_s := due_s - perf_counter()) > 0.0:  # noqa: ASYNC110 (time, not an event)
            await asyncio.sleep(wait_s)
        limit_s = max(0.0, deadline_s - perf_counter())
        timing = await timed_generate(session, server, encoded[index], limit_s)
        row = RequestRow(
            index=index,
            slo_class=request.slo_class,
            num_input_tokens=request.num_input_tokens,
            num_output_tokens=_num_output_tokens(request, options),
            slo_ttft_s=slos_s[request.slo_class],
            scheduled_s=due_s - start_s,
            sent_s=timing.sent_s - start_s,
            first_token_s=_relative(timing.first_token_s, start_s),
            finished_s=_relative(timing.finished_s, start_s),
            num_generated_tokens=timing.num_generated_tokens,
            error=timing.error,
        )
        on_finished(row)
        return row

    async with http_session() as session:
        return list(await asyncio.gather(*(send(i, session) for i in range(len(requests)))))


def _encode(
    engine: Engine,
    request: TraceRequest,
    prompts: UniquePrompts,
    slos_s: Mapping[str, float],
    options: ReplayOptions,
) -> GenerateRequest:
    return engine.encode(
        prompts.draw(request.num_input_tokens),
        _num_output_tokens(request, options),
        slo_ttft_s=slos_s[request.slo_class] if options.send_slo else None,
        slo_class=request.slo_class if options.send_class else None,
    )


def _num_output_tokens(request: TraceRequest, options: ReplayOptions) -> int:
    return request.num_output_tokens if options.original_output_lengths else 1


def _relative(time_s: float | None, start_s: float) -> float | None:
    return None if time_s is None else time_s - start_s
