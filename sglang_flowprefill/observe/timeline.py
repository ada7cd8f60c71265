"""A timeline of the scheduler as a trace file for https://ui.perfetto.dev and chrome://tracing.

Format: Chrome trace events, a JSON array with one event per line. Times are whole microseconds of
the scheduler's clock, so that neighbouring slices share their edge exactly.

    scheduler    instants: one per round, with its events, decision and reason
    decode       slices: decode steps
    prefill 0    slices: running from resume to yield or end; within them one per operator
    prefill 1    ...
    counters     requests waiting, prefills suspended

Slices are pairs of begin and end events in file order, never events with a duration: viewers then
need not guess how slices with equal times nest. An operator is written when it has ended. Lines
are kept in memory up to a fixed number and written whole, so the file of a killed server lacks
its last moments and its closing bracket, both of which viewers and ``read_timeline`` accept.

What it deliberately does not do: read a clock, except for boundaries; limit the size of the file.
"""

import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sglang_flowprefill.core import PrefillBatch
from sglang_flowprefill.errors import ConfigError
from sglang_flowprefill.loop.inflight import AnyCursor
from sglang_flowprefill.loop.observer import Observer, Round

logger = logging.getLogger(__name__)

BEFORE_FIRST_OPERATOR: Final = "before the first operator"
"""Name of the time from the start of a forward pass to its first boundary."""

CHUNK_FINISHED: Final = "chunk finished"
"""Outcome of a forward pass whose cursor goes on with another one."""

_MAX_BUFFERED_EVENTS = 256  # written at one go in well under a millisecond

SCHEDULER_TRACK = 1
DECODE_TRACK = 2
_FIRST_PREFILL_TRACK = 10  # plus the batch id


@dataclass(slots=True)
class _Track:
    """An unfinished cursor.

    Attributes:
        where: Process and track of its events, as JSON members.
        operator: What it runs now, or next if it is suspended.
    """

    where: str
    operator: str = BEFORE_FIRST_OPERATOR


class Timeline:
    """Writes the trace of one scheduler process.

    A file that cannot be written any more (the disk is full) ends the trace with one warning;
    the server goes on.

    Args:
        path: File to write; an older one is replaced.
        clock: The scheduler's time in seconds; read by ``on_boundary`` only.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._file = _EventFile(path)
        self._process = f'"pid":{os.getpid()}'
        self._tracks: dict[int, _Track] = {}
        self._running: _Track | None = None
        self._operator_start_us = 0
        self._counters: dict[str, int] = {}
        self._quoted: dict[str, str] = {}
        self._emit("process_name", "M", SCHEDULER_TRACK, args={"name": "FlowPrefill scheduler"})
        self._name_track(SCHEDULER_TRACK, "scheduler")
        self._name_track(DECODE_TRACK, "decode")

    def on_boundary(self, operator: str) -> None:
        """End the operator before and note the one that comes; outside a prefill do nothing."""
        track = self._running
        if track is None:
            return
        now_us = _microseconds(self._clock())
        self._write_operator(track, now_us)
        track.operator = operator
        self._operator_start_us = now_us

    def on_resume(self, batch_id: int, label: str, now_s: float, *, reason: str) -> None:
        """Begin a running slice of a cursor that starts or continues.

        Args:
            batch_id: Of the prefill batch.
            label: Name of its track.
            now_s: Scheduler clock.
            reason: Why it was chosen.
        """
        assert self._running is None, "one prefill runs at a time"
        track = self._tracks.get(batch_id)
        number = _FIRST_PREFILL_TRACK + batch_id
        if track is None:
            track = _Track(f'{self._process},"tid":{number}')
            self._tracks[batch_id] = track
            self._name_track(number, f"prefill {batch_id}: {label}")
        self._running = track
        self._operator_start_us = _microseconds(now_s)
        args = {"batch": batch_id, "label": label, "reason": reason}
        self._emit("running", "B", number, now_s, args=args)
        self._count_suspended(now_s)

    def on_yield(
        self, batch_id: int, now_s: float, *, causes: Sequence[str], blocking_s: float
    ) -> None:
        """End a running slice at a boundary whose operator has not run; it comes next time.

        Args:
            batch_id: Of the prefill batch.
            now_s: Scheduler clock.
            causes: Why it stopped.
            blocking_s: Seconds that whoever wanted the machine has waited, at most.
        """
        assert self._running is self._tracks[batch_id], "only what runs can yield"
        self._running = None
        args = {"end": "yield", "causes": list(causes), "blocking_s": round(blocking_s, 7)}
        self._emit("running", "E", _FIRST_PREFILL_TRACK + batch_id, now_s, args=args)
        self._count_suspended(now_s)

    def on_finish(self, batch_id: int, now_s: float, *, outcome: str) -> None:
        """End a cursor, or one forward pass of it.

        Args:
            batch_id: Of the prefill batch. A cursor that never ran has no track and leaves none.
            now_s: Scheduler clock.
            outcome: How it ended, such as finished, cancelled or dropped: an instant if it was
                suspended. After ``CHUNK_FINISHED`` it counts as suspended.
        """
        track = self._tracks.get(batch_id)
        if track is None:
            return
        number = _FIRST_PREFILL_TRACK + batch_id
        if self._running is track:
            self._running = None
            self._write_operator(track, _microseconds(now_s))
            self._emit("running", "E", number, now_s, args={"end": outcome})
        else:
            self._emit(outcome, "i", number, now_s)
        if outcome == CHUNK_FINISHED:
            track.operator = BEFORE_FIRST_OPERATOR
        else:
            del self._tracks[batch_id]
        self._count_suspended(now_s)

    def on_round(
        self,
        now_s: float,
        *,
        events: Sequence[str],
        decision: str,
        reason: str,
        num_waiting: int,
        num_unfinished: int,
    ) -> None:
        """Write one scheduling round; one that leaves nothing to do also writes the buffer.

        Args:
            now_s: Scheduler clock.
            events: Kinds of the events that caused it.
            decision: What it decided.
            reason: Why.
            num_waiting: Requests in the waiting queue.
            num_unfinished: Prefills that were started and have not ended.
        """
        args = {
            "events": list(events),
            "reason": reason,
            "waiting": num_waiting,
            "unfinished": num_unfinished,
        }
        self._emit(decision, "i", SCHEDULER_TRACK, now_s, args=args)
        self._count("requests waiting", num_waiting, now_s)
        if num_waiting == num_unfinished == 0:
            self._file.flush()

    def on_decode(self, start_s: float, end_s: float, *, num_requests: int) -> None:
        """Write one decode step of this many requests."""
        self._emit("decode step", "B", DECODE_TRACK, start_s, args={"requests": num_requests})
        self._emit("decode step", "E", DECODE_TRACK, end_s)

    def close(self) -> None:
        """Complete the file. Later calls of any method write nothing."""
        self._file.close()

    def _name_track(self, number: int, name: str) -> None:
        self._emit("thread_name", "M", number, args={"name": name})
        self._emit("thread_sort_index", "M", number, args={"sort_index": number})

    def _write_operator(self, track: _Track, end_us: int) -> None:
        """Write the operator that has just ended. Two events, formatted here for speed."""
        name = self._quoted.get(track.operator)
        if name is None:  # as many as the model has operators
            name = self._quoted[track.operator] = json.dumps(track.operator)
        head = f'{{"name":{name},{track.where},"ph":'
        begin = f'{head}"B","ts":{self._operator_start_us}}}'
        self._file.append(f'{begin},\n{head}"E","ts":{end_us}}}')

    def _count_suspended(self, now_s: float) -> None:
        is_one_running = self._running is not None
        self._count("prefills suspended", len(self._tracks) - is_one_running, now_s)

    def _count(self, name: str, value: int, now_s: float) -> None:
        if self._counters.get(name) != value:
            self._counters[name] = value
            self._emit(name, "C", SCHEDULER_TRACK, now_s, args={"count": value})

    def _emit(
        self,
        name: str,
        phase: str,
        track: int,
        time_s: float | None = None,
        args: dict[str, Any] | None = None,
    ) -> None:
        event: dict[str, Any] = {"name": name, "ph": phase}
        event |= {} if time_s is None else {"ts": _microseconds(time_s)}
        event |= {} if args is None else {"args": args}
        event |= {"s": "t"} if phase == "i" else {}
        members = json.dumps(event, separators=(",", ":"))[1:-1]
        self._file.append(f'{{{members},{self._process},"tid":{track}}}')


class _EventFile:
    """A JSON array of events, written in blocks of whole lines.

    Once writing fails, a warning is logged, the file is cut after its last whole event, and all
    later calls do nothing.

    Args:
        path: File to write.

    Raises:
        ConfigError: It cannot be opened or written at all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[str] = []
        self._num_bytes = 0
        self._separator = "\n"
        self._raw: io.FileIO | None = None
        try:
            self._raw = io.FileIO(path, "wb")
            self._write("[")
        except OSError as error:
            self._give_up()
            problem = f"cannot be written: {error.strerror or error}"
            raise ConfigError("--flowprefill-trace", str(path), problem) from error

    def append(self, events: str) -> None:
        """Add one event, or several joined as in the file."""
        self._pending.append(events)
        if len(self._pending) >= _MAX_BUFFERED_EVENTS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if not self._pending:
            return
        text = self._separator + ",\n".join(self._pending)
        self._pending.clear()
        self._separator = ",\n"
        self._try_write(text)

    def close(self) -> None:
        """Write what is pending and end the array."""
        self.flush()
        self._try_write("\n]\n")
        if self._raw is not None:
            self._raw.close()
            self._raw = None

    def _try_write(self, text: str) -> None:
        try:
            self._write(text)
        except OSError as error:
            logger.warning("FlowPrefill: the trace %s ends here: %s", self._path, error)
            self._give_up()

    def _write(self, text: str) -> None:
        if self._raw is None:
            return
        whole = text.encode("ascii")
        rest = memoryview(whole)
        while rest:  # a nearly full disk takes a part
            rest = rest[self._raw.write(rest) :]
        self._num_bytes += len(whole)

    def _give_up(self) -> None:
        if self._raw is None:
            return
        with suppress(OSError):  # a pipe cannot be cut
            self._raw.truncate(self._num_bytes)
        with suppress(OSError):
            self._raw.close()
        self._raw = None


def _microseconds(time_s: float) -> int:
    return round(time_s * 1e6)


class TimelineObserver(Observer):
    """Writes what it is told to a timeline.

    Args:
        timeline: The file.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def on_round(self, round_: Round) -> None:
        """Write a scheduling round."""
        self._timeline.on_round(
            round_.start_s,
            events=[event.kind.value for event in round_.events],
            decision=type(round_.decision).__name__,
            reason=round_.decision.reason,
            num_waiting=len(round_.view.waiting),
            num_unfinished=len(round_.view.batches),
        )

    def on_resume(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """Begin a running slice."""
        prefill = cursor.prefill
        self._timeline.on_resume(prefill.batch_id, _label(prefill), now_s, reason=reason)

    def on_yield(self, cursor: AnyCursor, now_s: float, cause: str, blocking_s: float) -> None:
        """End a running slice at a boundary."""
        self._timeline.on_yield(
            cursor.prefill.batch_id, now_s, causes=[cause], blocking_s=blocking_s
        )

    def on_chunk_end(self, cursor: AnyCursor, now_s: float) -> None:
        """End one forward pass of a prompt."""
        self._end(cursor, now_s, CHUNK_FINISHED)

    def on_prefill_end(self, cursor: AnyCursor, now_s: float) -> None:
        """End a prefill."""
        self._end(cursor, now_s, "finished")

    def on_drop(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """End a prefill that starts over."""
        self._end(cursor, now_s, "dropped")

    def on_cancel(self, cursor: AnyCursor, now_s: float) -> None:
        """End a prefill whose requests were all aborted."""
        self._end(cursor, now_s, "cancelled")

    def on_failure(self, cursor: AnyCursor, now_s: float, error: Exception) -> None:
        """End a prefill whose forward pass raised."""
        self._end(cursor, now_s, "failed")

    def on_decode(self, start_s: float, end_s: float, num_requests: int) -> None:
        """Write a decode step."""
        self._timeline.on_decode(start_s, end_s, num_requests=num_requests)

    def close(self) -> None:
        """Complete the file."""
        self._timeline.close()

    def _end(self, cursor: AnyCursor, now_s: float, outcome: str) -> None:
        self._timeline.on_finish(cursor.prefill.batch_id, now_s, outcome=outcome)


def _label(prefill: PrefillBatch) -> str:
    head = prefill.requests[0]
    others = f" and {len(prefill.requests) - 1} more" if len(prefill.requests) > 1 else ""
    return f"{head.request_id}{others} ({head.slo.class_name})"
