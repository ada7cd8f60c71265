"""A storm of requests on a real server, most of which end before their time, and what is left.

Every request is planned from a seed: when it comes, what it asks for and what becomes of it. Some
are read to their end, some slowly; the clients of others leave or abort them at a random moment,
which finds them waiting, suspended, running, between two chunks or decoding. The answers of those
that were read are compared with a quiet run of the same prompts.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import psutil

from tests.integration.serving import Server, generate_body, tokens

NUM_OUTPUT_TOKENS = 8
MAX_PROMPT_TOKENS = 1800
NUM_PROMPTS = 60
WAVE = 500  # requests that come at once, at most
_REQUEST_TIMEOUT_S = 300.0
_SETTLE_S = 120.0
_SLOW_READ_S = 0.05
_HEADERS: tuple[Mapping[str, str], ...] = (
    {},
    {"x-slo-ttft-ms": "200"},
    {"x-slo-ttft-ms": "5000"},
    {"x-slo-class": "interactive"},
    {"x-slo-class": "document"},
)
FATES = {"read": 0.3, "read slowly": 0.1, "leave": 0.3, "abort": 0.3}
"""What becomes of a request, with its share."""


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a storm.

    Attributes:
        rid: Its id, used once; none is the beginning of another, which an abort would match.
        prompt: Index of its prompt.
        num_output_tokens: Tokens that it asks for.
        headers: Its objective.
        fate: Key of ``FATES``.
        after_s: When its client leaves or aborts it, in seconds from its sending.
    """

    rid: str
    prompt: int
    num_output_tokens: int
    headers: Mapping[str, str]
    fate: str
    after_s: float


def prompts(seed: int = 0) -> list[list[int]]:
    """Draw the prompts of a storm: most short, some of many chunks."""
    rng = random.Random(seed)
    lengths = [
        min(MAX_PROMPT_TOKENS, int(8 + 30 * rng.paretovariate(0.9))) for _ in range(NUM_PROMPTS)
    ]
    return [tokens(length, 10_000 * seed + index) for index, length in enumerate(lengths)]


def planned(num_requests: int, seed: int) -> Iterator[PlannedRequest]:
    """Draw a storm."""
    rng = random.Random(seed)
    for index in range(num_requests):
        yield PlannedRequest(
            f"storm-{seed}-{index:06d}",
            rng.randrange(NUM_PROMPTS),
            rng.randint(1, NUM_OUTPUT_TOKENS),
            rng.choice(_HEADERS),
            rng.choices(list(FATES), list(FATES.values()))[0],
            rng.expovariate(1.0),
        )


@dataclass
class Report:
    """What became of a storm.

    Attributes:
        outcomes: How the requests ended, for their clients.
        wrong: Answers that differ from those of a quiet run.
        lost: Requests that were not answered.
        doubled: Answers with more tokens than were asked for, or two ends.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """True if nothing was lost, doubled or wrong."""
        return not (self.wrong or self.lost or self.doubled)


@dataclass(frozen=True, slots=True)
class Level:
    """What a server holds when nothing is going on.

    Attributes:
        memory_bytes: Resident memory of all its processes.
        num_files: Their open descriptors, connections among them.
        num_threads: Their threads.
    """

    memory_bytes: int
    num_files: int
    num_threads: int


def quiet_answers(server: Server, all_prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return what each prompt is answered with when it is alone."""
    return [server.generate(list(p), NUM_OUTPUT_TOKENS)["output_ids"] for p in all_prompts]


def level_of(server: Server) -> Level:
    """Wait until nothing is going on, empty the cache, and measure.

    Raises:
        AssertionError: KV is still in use after that.
    """
    server.wait_until_idle(_SETTLE_S)
    assert server.post("/flush_cache", None).status_code == 200, "the server says that it is busy"
    time.sleep(1.0)
    root = psutil.Process(server.process.pid)
    processes = [root, *root.children(recursive=True)]
    return Level(
        sum(process.memory_info().rss for process in processes),
        sum(process.num_fds() for process in processes),
        sum(process.num_threads() for process in processes),
    )


def storm(server: Server, num_requests: int, seed: int, answers: Sequence[Sequence[int]]) -> Report:
    """Send a storm in waves and wait for its end.

    Args:
        server: Takes it.
        num_requests: How many.
        seed: Of the plan; its prompts are those of ``prompts()``.
        answers: Of a quiet run.
    """
    return asyncio.run(_storm(server, list(planned(num_requests, seed)), prompts(), answers))


async def _storm(
    server: Server,
    plan: Sequence[PlannedRequest],
    all_prompts: Sequence[list[int]],
    answers: Sequence[Sequence[int]],
) -> Report:
    report = Report()
    timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(server.url, timeout=timeout, connector=connector) as session:
        for first in range(0, len(plan), WAVE):
            wave = plan[first : first + WAVE]
            await asyncio.gather(
                *(
                    _live(session, request, all_prompts[request.prompt], answers, report)
                    for request in wave
                )
            )
    return report


async def _live(
    session: aiohttp.ClientSession,
    request: PlannedRequest,
    prompt: list[int],
    answers: Sequence[Sequence[int]],
    report: Report,
) -> None:
    """Live one request's life."""
    sent = asyncio.create_task(_ask(session, request, prompt))
    try:
        if request.fate == "leave":
            await asyncio.wait([sent], timeout=request.after_s)
            if not sent.done():
                sent.cancel()
                report.outcomes["client left"] += 1
                return
        elif request.fate == "abort":
            await asyncio.wait([sent], timeout=request.after_s)
            if not sent.done():
                await session.post("/abort_request", json={"rid": request.rid})
        answer = await sent
    except (TimeoutError, aiohttp.ClientError) as error:
        report.lost.append(f"{request.rid}: {error!r}")
        return
    _judge(request, answer, answers[request.prompt], report)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    output_ids: Sequence[int]
    end: str
    num_ends: int


async def _ask(
    session: aiohttp.ClientSession, request: PlannedRequest, prompt: list[int]
) -> _Answer:
    is_slow = request.fate == "read slowly"
    body = generate_body(prompt, request.num_output_tokens, rid=request.rid, stream=is_slow)
    async with session.post("/generate", json=body, headers=request.headers) as response:
        if not is_slow:
            return _answer(response.status, [await response.json()])
        events = []
        async for line in response.content:
            await asyncio.sleep(_SLOW_READ_S)
            if line.startswith(b"data: {"):
                events.append(json.loads(line[len(b"data: ") :]))
        return _answer(response.status, events)


def _answer(status: int, events: Sequence[Mapping]) -> _Answer:
    ends = [event["meta_info"]["finish_reason"] for event in events if "meta_info" in event]
    ends = [end["type"] for end in ends if end is not None]
    output_ids = events[-1].get("output_ids", ()) if events else ()
    return _Answer(status, output_ids, ends[-1] if ends else "none", len(ends))


def _judge(request: PlannedRequest, answer: _Answer, quiet: Sequence[int], report: Report) -> None:
    report.outcomes[f"{answer.status} {answer.end}"] += 1
    if answer.num_ends > 1 or len(answer.output_ids) > request.num_output_tokens:
        report.doubled.append(f"{request.rid}: {answer}")
    was_aborted = request.fate == "abort" and answer.end == "abort"
    if was_aborted:
        expected = list(quiet[: len(answer.output_ids)])
    else:
        expected = list(quiet[: request.num_output_tokens])
    if answer.status != 200 or list(answer.output_ids) != expected:
        report.wrong.append(f"{request.rid} ({request.fate}): {answer}, not {expected}")
