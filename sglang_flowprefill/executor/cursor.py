"""A forward pass that can stand still.

Why a greenlet and not a thread: the engine assumes one thread for torch's thread state, its ZMQ
sockets, its collective order and its process-wide globals. A greenlet keeps all of that and adds
0.5 us per switch. Two things do not follow a greenlet by themselves: the ``contextvars`` context
(a new greenlet starts with an empty one) and the engine's plain globals, which a ``SwitchState``
moves in and out.
"""

import contextvars
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import greenlet

from sglang_flowprefill.errors import CursorError
from sglang_flowprefill.executor.checkpoint import Checkpoint

Result = TypeVar("Result")


class SwitchState(Protocol):
    """Process-wide state of the engine that belongs to whichever forward pass is running."""

    def enter(self) -> None:
        """Put the cursor's globals in place, remembering the scheduler's."""

    def leave(self) -> None:
        """Remember the cursor's globals and put the scheduler's back."""


class Cursor(Generic[Result]):
    """One forward pass: not started, suspended at a boundary, finished or cancelled.

    A suspended cursor must be resumed to its end or cancelled. Its stack refers to itself out of
    the garbage collector's sight: merely dropped, it stays in memory with all its tensors.

    Args:
        run: The forward pass. Whatever it raises comes out of ``resume``.
        checkpoint: Where its boundaries report.
        state: Globals to switch.
        is_preemptible: False runs it through in one go, boundaries only being counted.
        is_bounded: False lets the host launch all of it without waiting for the device: for
            forward passes that are short as a whole.

    Attributes:
        num_boundaries: Boundaries passed so far.
        num_suspensions: Times it was suspended.
    """

    def __init__(
        self,
        run: Callable[[], Result],
        checkpoint: Checkpoint,
        state: SwitchState,
        *,
        is_preemptible: bool = True,
        is_bounded: bool = True,
    ) -> None:
        self._checkpoint = checkpoint
        self._state = state
        self._result: Result | None = None
        self._is_finished = False
        self._greenlet = greenlet.greenlet(self._main(run))
        self._greenlet.gr_context = contextvars.copy_context()
        self.is_preemptible = is_preemptible
        self.is_bounded = is_bounded
        self.num_boundaries = 0
        self.num_suspensions = 0

    @property
    def is_finished(self) -> bool:
        """True once the forward pass has returned."""
        return self._is_finished

    @property
    def is_alive(self) -> bool:
        """True while there is something left to run or to unwind."""
        return not self._greenlet.dead

    @property
    def result(self) -> Result:
        """What the forward pass returned.

        Raises:
            CursorError: It has not finished.
        """
        if not self._is_finished:
            raise CursorError("a cursor has no result before it has finished")
        assert self._result is not None or self._is_finished
        return self._result  # type: ignore[return-value]

    def resume(self) -> bool:
        """Run until the end or until a boundary yields.

        Returns:
            True if the forward pass has finished.

        Raises:
            CursorError: It has finished or was cancelled before, or a cursor is running.
            Exception: Whatever the forward pass raised; the cursor is dead then.
        """
        if self._greenlet.dead:
            raise CursorError("a finished or cancelled cursor cannot be resumed")
        self._switch(self._greenlet.switch)
        return self._is_finished

    def suspend(self) -> None:
        """Give control back to the scheduler. Called on the cursor's side, at a checkpoint."""
        self.num_suspensions += 1
        # The parent's value for the next switch is deliberately dropped: a module pre-hook that
        # returned it would replace the module's inputs.
        self._greenlet.parent.switch()

    def cancel(self) -> None:
        """Abandon the forward pass: its stack unwinds, so every ``with`` and ``finally`` runs.

        Does nothing if it has ended already. Returns, or raises, when the device has finished
        what was launched, so that memory may be given back.

        Raises:
            CursorError: It refused to end, or a cursor is running.
            Exception: Whatever its clean-up raised.
        """
        if self._greenlet.dead:
            return
        try:
            self._switch(self._greenlet.throw)
        finally:
            self._checkpoint.drain()
        if not self._greenlet.dead:
            raise CursorError("a cancelled forward pass swallowed GreenletExit and went on")

    def _switch(self, into: Callable[[], object]) -> None:
        if self._checkpoint.cursor is not None:
            raise CursorError("a running forward pass cannot resume or cancel a cursor")
        self._greenlet.parent = greenlet.getcurrent()
        self._state.enter()
        self._checkpoint.enter(self)
        try:
            into()
        finally:
            self._checkpoint.leave()
            self._state.leave()

    def _main(self, run: Callable[[], Result]) -> Callable[[], None]:
        def main() -> None:
            self._result = run()
            self._is_finished = True

        return main
