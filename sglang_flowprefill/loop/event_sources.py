"""Where the scheduler process hears of events, merged behind one interface.

    timer      a decode step or a review is due
    messages   arrivals, aborts, control messages (the engine's own source)
    grammars   grammar compiler threads
    memory     KV memory came free that somebody waits for
    the loop   completions and cancellations, which it ``post``s itself

A source answers two questions. ``is_ready`` is asked at every boundary of a running prefill, so
it costs microseconds (all of them together about 4 us for two sockets) and takes nothing in.
``take`` is asked between two decisions and says what has happened since; with tensor parallelism
on every rank, at the same points, because taking messages in is a collective.

All on the scheduler's own thread: ZMQ sockets are not thread-safe.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from sglang_flowprefill.core import Event, EventKind

_LOOK_INTERVAL_S = 1e-4  # looking takes 5 us, an operator over a few tokens not much longer
_GRAMMAR_POLL_S = 0.02


class Source(Protocol):
    """One origin of events.

    Attributes:
        name: What a yield is said to make way for.
    """

    name: str

    def is_ready(self, now_s: float) -> bool:
        """Tell whether ``take`` may have something to say. Asked at boundaries."""
        ...

    def take(self, now_s: float) -> Iterable[EventKind]:
        """Return what has happened since the last call, each once."""
        ...


class TimerSource:
    """One wake-up time, which the policy sets.

    Attributes:
        due_s: When; infinity for never.
    """

    name = "timer"

    def __init__(self) -> None:
        self.due_s = math.inf

    def is_ready(self, now_s: float) -> bool:
        """Tell whether the time has come."""
        return now_s >= self.due_s

    def take(self, now_s: float) -> Iterable[EventKind]:
        """Go off once."""
        if now_s < self.due_s:
            return ()
        self.due_s = math.inf
        return (EventKind.TIMER,)


class GrammarSource:
    """Requests that wait for a grammar compiler thread, which tells nobody when it is through.

    Args:
        has_waiting: Tells whether there are any.
        admit_ready: Queues those whose grammar is compiled and returns how many.
    """

    name = "grammar"

    def __init__(self, has_waiting: Callable[[], bool], admit_ready: Callable[[], int]) -> None:
        self._has_waiting = has_waiting
        self._admit_ready = admit_ready
        self._next_look_s = 0.0

    def is_ready(self, now_s: float) -> bool:
        """Tell whether it is time to look again: a running prefill yields for it."""
        return now_s >= self._next_look_s and self._has_waiting()

    def take(self, now_s: float) -> Iterable[EventKind]:
        """Queue what is ready."""
        self._next_look_s = now_s + _GRAMMAR_POLL_S
        return (EventKind.GRAMMAR_READY,) * self._admit_ready()


class MemorySource:
    """Tells when memory came free that somebody waits for.

    Args:
        room: What may be given out now; every number grows as memory comes free.
    """

    name = "memory"

    def __init__(self, room: Callable[[], tuple[float, ...]]) -> None:
        self._room = room
        self._room_before: tuple[float, ...] | None = None

    def watch(self) -> None:
        """Somebody has just been turned away for want of memory."""
        self._room_before = self._room()

    def is_ready(self, now_s: float) -> bool:
        """Never at a boundary: a running prefill frees nothing for others."""
        return False

    def take(self, now_s: float) -> Iterable[EventKind]:
        """Say so once there is more of anything than when somebody was turned away."""
        before = self._room_before
        if before is None or not any(
            now > then for now, then in zip(self._room(), before, strict=True)
        ):
            return ()
        self._room_before = None
        return (EventKind.KV_FREED,)


class EventSources:
    """All sources as one.

    Args:
        sources: The engine's own; the timer and memory are added.
        memory: Told by the loop when somebody is turned away.
        wait: Sleeps until a message comes, for this many seconds at most.
        clock: Monotonic time in seconds.

    Attributes:
        timer: Armed by the loop.
        memory: As given.
        cause: Name of the source that the last positive answer was about.
        last_quiet_s: Time at which nothing had happened the last time that somebody looked.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        memory: MemorySource,
        wait: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self.timer = TimerSource()
        self.memory = memory
        self.cause = ""
        self.last_quiet_s = 0.0
        self._next_look_s = 0.0
        self._wait = wait
        self._clock = clock
        self._sources: Sequence[Source] = (self.timer, *sources, memory)
        self._posted: list[Event] = []

    def start_slice(self) -> None:
        """Nothing has happened yet: a prefill is about to run."""
        self.last_quiet_s = self._clock()

    def has_event(self) -> bool:
        """Tell, at a boundary, whether the scheduler should look.

        ``last_quiet_s`` keeps the last time the answer was no: what caused a yes came after it,
        which bounds from above how long a running prefill has blocked it. Boundaries that follow
        within a tenth of a millisecond are passed without looking.
        """
        now_s = self._clock()
        if now_s < self._next_look_s:
            return False
        for source in self._sources:
            if source.is_ready(now_s):
                self.cause = source.name
                return True
        self.last_quiet_s = now_s
        self._next_look_s = now_s + _LOOK_INTERVAL_S
        return False

    def note_yield(self, cause: str, event_s: float) -> None:
        """Note what an engine knows that need not look: the cause of a yield, and its time."""
        self.cause = cause
        self.last_quiet_s = event_s

    def post(self, kind: EventKind) -> None:
        """Note what the loop itself has done."""
        self._posted.append(Event(kind, self._clock()))

    def take_posted(self) -> list[Event]:
        """Return what the loop has done since the last call."""
        taken, self._posted = self._posted, []
        return taken

    def take(self) -> list[Event]:
        """Return everything that has happened since the last call, in the order noticed."""
        taken: list[Event] = []
        for source in self._sources:
            now_s = self._clock()
            taken += [Event(kind, now_s) for kind in source.take(now_s)]
        taken += self.take_posted()
        return sorted(taken, key=lambda event: event.time_s)

    def wait(self, timeout_s: float) -> None:
        """Sleep until a message comes or the timeout is over."""
        self._wait(timeout_s)
