"""Reads back what ``timeline.py`` has written, for measurements and pictures."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_flowprefill.observe.timeline import (
    DECODE_TRACK,
    SCHEDULER_TRACK,
)


@dataclass(frozen=True, slots=True)
class OperatorSlice:
    """One operator, or what of it lies between two boundaries.

    Attributes:
        name: As given to ``Timeline.on_boundary``.
        start_s: Scheduler clock.
        end_s: Scheduler clock.
    """

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class RunningSlice:
    """What a cursor ran between two suspensions.

    Attributes:
        batch_id: Of the prefill batch.
        label: Request ids and SLO class.
        reason: Why it was chosen.
        start_s: Scheduler clock.
        end_s: Scheduler clock.
        end: ``yield``, or the outcome of its cursor.
        causes: Of the yield.
        blocking_s: Seconds that the cause of the yield has waited, at most; None without yield.
        operators: What ran, in order.
    """

    batch_id: int
    label: str
    reason: str
    start_s: float
    end_s: float
    end: str
    causes: tuple[str, ...]
    blocking_s: float | None
    operators: tuple[OperatorSlice, ...]


@dataclass(frozen=True, slots=True)
class DecodeSlice:
    """One decode step of ``num_requests`` requests."""

    start_s: float
    end_s: float
    num_requests: int


@dataclass(frozen=True, slots=True)
class RoundInstant:
    """One scheduling round; fields as in ``Timeline.on_round``."""

    time_s: float
    events: tuple[str, ...]
    decision: str
    reason: str
    num_waiting: int
    num_unfinished: int


@dataclass(frozen=True, slots=True)
class RecordedTimeline:
    """What a trace file holds, each in order of its end.

    Attributes:
        running: Slices of prefills.
        decodes: Decode steps.
        rounds: Scheduling rounds.
    """

    running: tuple[RunningSlice, ...]
    decodes: tuple[DecodeSlice, ...]
    rounds: tuple[RoundInstant, ...]


def read_timeline(path: Path) -> RecordedTimeline:
    """Read a trace, also of a server that was killed; slices without an end are left out.

    Raises:
        ValueError: The file is no trace of ``Timeline``.
    """
    running: list[RunningSlice] = []
    decodes: list[DecodeSlice] = []
    rounds: list[RoundInstant] = []
    open_slices: dict[int, list[dict[str, Any]]] = {}
    operators: dict[int, list[OperatorSlice]] = {}
    for event in _events(path):
        track, phase = event["tid"], event["ph"]
        if phase == "i" and track == SCHEDULER_TRACK:
            rounds.append(_round_of(event))
        elif phase == "B":
            open_slices.setdefault(track, []).append(event)
        elif phase == "E":
            begin = open_slices[track].pop()
            if track == DECODE_TRACK:
                decodes.append(_decode_of(begin, event))
            elif open_slices[track]:
                operators.setdefault(track, []).append(_operator_of(begin, event))
            else:
                running.append(_running_of(begin, event, operators.pop(track, [])))
    return RecordedTimeline(tuple(running), tuple(decodes), tuple(rounds))


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a file whose last line may be torn."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.strip().removesuffix(",")
            if text in {"[", "]", ""}:
                continue
            try:
                yield json.loads(text)
            except json.JSONDecodeError as error:
                if line.endswith("\n"):
                    raise ValueError(f"{path}, line {number}: not a trace event") from error


def _seconds(event: dict[str, Any]) -> float:
    return float(event["ts"] / 1e6)


def _operator_of(begin: dict[str, Any], end: dict[str, Any]) -> OperatorSlice:
    return OperatorSlice(begin["name"], _seconds(begin), _seconds(end))


def _decode_of(begin: dict[str, Any], end: dict[str, Any]) -> DecodeSlice:
    return DecodeSlice(_seconds(begin), _seconds(end), begin["args"]["requests"])


def _running_of(
    begin: dict[str, Any], end: dict[str, Any], operators: Sequence[OperatorSlice]
) -> RunningSlice:
    started, ended = begin["args"], end["args"]
    return RunningSlice(
        batch_id=started["batch"],
        label=started["label"],
        reason=started["reason"],
        start_s=_seconds(begin),
        end_s=_seconds(end),
        end=ended["end"],
        causes=tuple(ended.get("causes", ())),
        blocking_s=ended.get("blocking_s"),
        operators=tuple(operators),
    )


def _round_of(event: dict[str, Any]) -> RoundInstant:
    args = event["args"]
    return RoundInstant(
        time_s=_seconds(event),
        events=tuple(args["events"]),
        decision=event["name"],
        reason=args["reason"],
        num_waiting=args["waiting"],
        num_unfinished=args["unfinished"],
    )
