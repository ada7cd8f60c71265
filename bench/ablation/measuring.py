"""What a server does during a replay: rounds, processor time, time between boundaries."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.ablation.points import ServerUse
from bench.blocking.waits import Window, operator_durations_s, running_in, uniform_arrival
from bench.errors import ServerError
from bench.replaying.metrics import percentile
from bench.systems.client import get_json, http_session
from sglang_flowprefill.observe.timeline_reader import RunningSlice, read_timeline

_SCHEDULER = "scheduler"  # what SGLang calls the process, in its title


@dataclass(frozen=True, slots=True)
class ServerState:
    """Counters of a server at one moment.

    Attributes:
        time_s: Monotonic clock, which the server's timeline shares.
        num_rounds: Scheduling rounds so far.
        num_preemptions: Preemptions so far.
        cpu_s: Processor time of the scheduler process so far.
    """

    time_s: float
    num_rounds: int
    num_preemptions: int
    cpu_s: float


async def server_state(url: str, process_id: int) -> ServerState:
    """Ask a FlowPrefill server and the system for its counters.

    Raises:
        ServerError: It does not answer, or is no FlowPrefill server.
    """
    async with http_session() as session:
        statistics = await flowprefill_statistics(session, url)
    return ServerState(
        time_s=time.monotonic(),
        num_rounds=statistics["num_rounds"],
        num_preemptions=statistics["num_preemptions"],
        cpu_s=scheduler_cpu_s(process_id),
    )


async def flowprefill_statistics(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """Return what the scheduler says of itself.

    Raises:
        ServerError: The server does not answer, or is no FlowPrefill server.
    """
    info = await get_json(session, f"{url}/server_info")
    try:
        statistics: dict[str, Any] = info["internal_states"][0]["flowprefill"]
    except (KeyError, IndexError) as error:
        raise ServerError(f"{url} is not a FlowPrefill server: no {error}") from error
    return statistics


def scheduler_cpu_s(process_id: int) -> float:
    """Return the processor time of the scheduler processes below a launcher.

    Raises:
        ServerError: There is none.
    """
    schedulers = [
        child
        for child in psutil.Process(process_id).children(recursive=True)
        if _SCHEDULER in " ".join(child.cmdline())
    ]
    if not schedulers:
        raise ServerError(f"process {process_id} has no scheduler among its children")
    return sum(sum(child.cpu_times()[:2]) for child in schedulers)


def server_use(
    before: ServerState, after: ServerState, num_requests: int, trace: Path
) -> ServerUse:
    """Return what was done between two moments, for so many requests.

    Args:
        before: Just before the replay.
        after: Just after.
        num_requests: Of the replay.
        trace: Timeline file of the server, which idles now and so has written everything.

    Raises:
        ServerError: The file cannot be read.
    """
    try:
        recorded = read_timeline(trace)
    except (OSError, ValueError) as error:
        raise ServerError(f"the timeline {trace} cannot be read: {error}") from error
    slices = running_in(recorded, Window(before.time_s, after.time_s))
    waits = uniform_arrival(operator_durations_s(slices))
    switches_s = switch_durations_s(slices)
    return ServerUse(
        rounds_per_request=(after.num_rounds - before.num_rounds) / num_requests,
        preemptions_per_request=(after.num_preemptions - before.num_preemptions) / num_requests,
        scheduler_cores=(after.cpu_s - before.cpu_s) / (after.time_s - before.time_s),
        wait_p50_s=None if waits is None else waits.p50_s,
        wait_p99_s=None if waits is None else waits.p99_s,
        switch_p50_s=percentile(switches_s, 0.5) if switches_s else None,
    )


def switch_durations_s(slices: Iterable[RunningSlice]) -> list[float]:
    """Return the time from each yield to the start of whatever ran next."""
    by_start = sorted(slices, key=lambda s: s.start_s)
    return [
        after.start_s - before.end_s
        for before, after in pairwise(by_start)
        if before.end == "yield"
    ]
