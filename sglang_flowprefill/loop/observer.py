"""Who watches the loop, and what they are told.

An observer reads what it is given and writes its own books. It never changes what it is given and
never talks to another observer; one that raises is removed, and the loop goes on. No decision
depends on any of them: the loop decides the same with none.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

from sglang_flowprefill.core import (
    Decision,
    Degrade,
    Event,
    EventKind,
    PredictionError,
    PrefillRequest,
    Reject,
    RoundView,
)
from sglang_flowprefill.loop.inflight import AnyCursor

logger = logging.getLogger(__name__)

Told = ParamSpec("Told")


@dataclass(frozen=True, slots=True)
class Round:
    """One scheduling round.

    Attributes:
        events: Events that it was for; the first is its cause.
        view: What it saw.
        decision: What it decided.
        start_s: When it began.
        end_s: When it had decided.
        num_running: Requests past their prefill.
    """

    events: Sequence[Event]
    view: RoundView
    decision: Decision
    start_s: float
    end_s: float
    num_running: int


class Observer:
    """What may be told. Every method does nothing; an observer overrides those that it wants."""

    def on_event(self, kind: EventKind) -> None:
        """Something happened that causes a round."""

    def on_arrival(self, request: PrefillRequest) -> None:
        """A new request came."""

    def on_not_admitted(self, request: PrefillRequest, verdict: Degrade | Reject) -> None:
        """A new request was refused, or put behind all others."""

    def on_round(self, round_: Round) -> None:
        """A scheduling round decided."""

    def on_preemption(self, preempted: AnyCursor, by: AnyCursor, now_s: float, reason: str) -> None:
        """Another prefill is put in front of an unfinished one that could have gone on."""

    def on_resume(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """A prefill is about to start or to go on; its batch has not changed its state yet."""

    def on_yield(self, cursor: AnyCursor, now_s: float, cause: str, blocking_s: float) -> None:
        """A prefill stopped at a boundary.

        Args:
            cursor: The prefill.
            now_s: When it stopped.
            cause: Name of the event source that it made way for.
            blocking_s: Seconds that the event has waited for it at most.
        """

    def on_chunk_end(self, cursor: AnyCursor, now_s: float) -> None:
        """A forward pass ended that is not the last of its prompt."""

    def on_prefill_end(self, cursor: AnyCursor, now_s: float) -> None:
        """A prefill has all its first tokens."""

    def on_drop(self, cursor: AnyCursor, now_s: float, reason: str) -> None:
        """An unfinished prefill was given up for its memory; its requests start over."""

    def on_cancel(self, cursor: AnyCursor, now_s: float) -> None:
        """An unfinished prefill was given up because every one of its requests was aborted."""

    def on_failure(self, cursor: AnyCursor, now_s: float, error: Exception) -> None:
        """A forward pass raised; its requests were answered with the error."""

    def on_first_token(self, request: PrefillRequest, now_s: float) -> None:
        """A request got its first token."""

    def on_completion(self, request: PrefillRequest, end: str) -> None:
        """A request got its last token, for this reason."""

    def on_prediction(self, error: PredictionError) -> None:
        """The predictor was compared with what a prefill took."""

    def on_decode(self, start_s: float, end_s: float, num_requests: int) -> None:
        """A decode step ran."""

    def close(self) -> None:
        """The loop has ended."""


class Observers:
    """All observers of one loop.

    Args:
        observers: Each is told everything that it has a method for, in this order.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = list(observers)
        self._listeners: dict[str, list[Callable[..., None]]] = {}

    def tell(
        self,
        what: Callable[Concatenate[Any, Told], None],
        *args: Told.args,
        **kwargs: Told.kwargs,
    ) -> None:
        """Tell everybody one thing.

        Args:
            what: Method of ``Observer``.
            args: Its arguments.
            kwargs: Likewise, by name.
        """
        name = what.__name__
        listeners = self._listeners.get(name)
        if listeners is None:
            listeners = self._listeners[name] = self._listening_to(name)
        for listener in listeners:
            try:
                listener(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 (whatever it is, serving goes on)
                self._remove(listener, error)

    def _listening_to(self, name: str) -> list[Callable[..., None]]:
        silent = getattr(Observer, name)
        return [
            getattr(observer, name)
            for observer in self._observers
            if getattr(type(observer), name) is not silent
        ]

    def _remove(self, listener: Callable[..., None], error: Exception) -> None:
        observer = listener.__self__  # type: ignore[attr-defined]
        self._observers = [other for other in self._observers if other is not observer]
        self._listeners = {}  # made anew: lists that are being walked stay as they are
        logger.error(
            "FlowPrefill: observer %s raised %r in %s and is told nothing more; serving goes on",
            type(observer).__name__,
            error,
            listener.__name__,
        )
