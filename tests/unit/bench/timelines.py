"""Builders of recorded timelines, and a server that writes one, for tests of ``bench.blocking``."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from sglang_flowprefill.observe.timeline import Timeline
from sglang_flowprefill.observe.timeline_reader import (
    OperatorSlice,
    RecordedTimeline,
    RoundInstant,
    RunningSlice,
)

OPERATOR_TOKENS = 10


def running(batch_id, start_s, *operators_s, end="yield", blocking_s=None):
    """Make a running slice of operators with these durations."""
    slices, time_s = [], start_s
    for duration_s in operators_s:
        slices.append(OperatorSlice("operator", time_s, time_s + duration_s))
        time_s += duration_s
    return RunningSlice(
        batch_id=batch_id,
        label=f"r{batch_id} (default)",
        reason="-",
        start_s=start_s,
        end_s=time_s,
        end=end,
        causes=("arrival",) if end == "yield" else (),
        blocking_s=blocking_s,
        operators=tuple(slices),
    )


def round_at(time_s, *events):
    """Make a round with these events."""
    return RoundInstant(time_s, events, "ResumeBatch", "-", 0, 0)


def timeline_of(running_slices=(), rounds=()):
    """Make a recorded timeline."""
    return RecordedTimeline(tuple(running_slices), (), tuple(rounds))


@dataclass(eq=False)
class _Job:
    batch_id: int
    num_left: int
    is_urgent: bool
    done: asyncio.Event = field(default_factory=asyncio.Event)
    has_run: bool = False


class TimelineServer:
    """Prefills one prompt at a time in operators of 10 tokens and writes its timeline.

    Args:
        path: Of the trace.
        operator_s: Seconds of an operator.
        preempts: Whether an urgent prompt (one operator) interrupts a long one; if not, there are
            no boundaries either.
    """

    def __init__(self, path: Path, operator_s: float = 0.002, *, preempts: bool = True) -> None:
        self.timeline = Timeline(path, time.monotonic)
        self._operator_s = operator_s
        self._preempts = preempts
        self._jobs: deque[_Job] = deque()
        self._num_jobs = 0
        self._events: list[str] = []
        self._is_serving = False

    async def prefill(self, num_tokens: int) -> None:
        """Wait until this prompt has been prefilled, as ``FakeSGLang`` does before a token."""
        is_urgent = num_tokens <= OPERATOR_TOKENS
        job = _Job(self._num_jobs, max(1, num_tokens // OPERATOR_TOKENS), is_urgent)
        self._num_jobs += 1
        self._jobs.append(job)
        self._events.append("arrival")
        if self._is_serving:
            await job.done.wait()
            return
        self._is_serving = True
        while self._jobs:
            self._round("StartBatch")
            await self._run(min(self._jobs, key=lambda j: (not j.is_urgent, j.batch_id)))
        self._round("Wait")
        self._is_serving = False

    def _round(self, decision: str) -> None:
        self.timeline.on_round(
            time.monotonic(),
            events=self._events,
            decision=decision,
            reason="-",
            num_waiting=sum(not job.has_run for job in self._jobs),
            num_unfinished=sum(job.has_run for job in self._jobs),
        )
        self._events = []

    async def _run(self, job: _Job) -> None:
        job.has_run = True
        self.timeline.on_resume(job.batch_id, f"r{job.batch_id}", time.monotonic(), reason="-")
        quiet_s = time.monotonic()
        while job.num_left:
            now_s = time.monotonic()
            if self._preempts:
                self.timeline.on_boundary("operator")
            if self._preempts and self._events and not job.is_urgent:
                self.timeline.on_yield(
                    job.batch_id, now_s, causes=["arrival"], blocking_s=now_s - quiet_s
                )
                return
            quiet_s = now_s
            await asyncio.sleep(self._operator_s)
            job.num_left -= 1
        self.timeline.on_finish(job.batch_id, time.monotonic(), outcome="finished")
        self._events.append("completion")
        self._jobs.remove(job)
        job.done.set()
