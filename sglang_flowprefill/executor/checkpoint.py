"""The preemption point: the only place where a running prefill may stop.

``reach`` is always a checkpoint: control may leave for any length of time and any other forward
pass may run in between. It is called from module hooks and between tiles, never from inside a
torch custom op, a stream context or a graph capture, whose C++ state would leak to the other
side. Outside a cursor (decode, warm-up) it does nothing.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang_flowprefill.executor.run_ahead import RunAhead
from sglang_flowprefill.executor.stoppable import StoppableWork

if TYPE_CHECKING:
    from sglang_flowprefill.executor.cursor import Cursor


class Checkpoint:
    """Connects boundaries of the model with the cursor that is running.

    Args:
        should_yield: Tells whether the scheduler wants control. Called at every boundary of a
            running cursor, so it must cost microseconds.
        run_ahead: Bounds how far the host launches ahead; None on a synchronous device.
        asks_once: Call ``should_yield`` exactly once at each boundary. Otherwise an asynchronous
            device is waited for while asking again and again.

    Attributes:
        observer: Told the name of every operator that a running cursor is about to start.
    """

    def __init__(
        self,
        should_yield: Callable[[], bool],
        run_ahead: RunAhead | None = None,
        *,
        asks_once: bool = False,
    ) -> None:
        self._should_yield = should_yield
        self._run_ahead = run_ahead if run_ahead is not None and run_ahead.is_possible else None
        self._asks_once = asks_once
        self._cursor: Cursor[Any] | None = None
        self.observer: Callable[[str], None] | None = None

    @property
    def cursor(self) -> "Cursor[Any] | None":
        """The cursor that is running now, if any."""
        return self._cursor

    def reach(self, operator: str = "") -> None:
        """Pass one boundary; suspend the running cursor if somebody wants the machine.

        On an asynchronous device, return only when the next operator may be launched.

        Args:
            operator: What runs next, for the observer.
        """
        cursor = self._cursor
        if cursor is None:
            return
        cursor.num_boundaries += 1
        if self.observer is not None:
            self.observer(operator)
        if self._run_ahead is None or not cursor.is_bounded:
            if self._wants_control():
                cursor.suspend()
            return
        if self._asks_once:
            self._run_ahead.reach_boundary(_never)
            if self._wants_control():
                cursor.suspend()
                self._run_ahead.wait_for_room(_never)
            return
        must_suspend = self._run_ahead.reach_boundary(self._wants_control)
        while must_suspend:
            cursor.suspend()
            must_suspend = self._run_ahead.wait_for_room(self._wants_control)

    def run(self, work: StoppableWork, operator: str = "") -> None:
        """Run work that can be stopped; suspend the running cursor wherever it was.

        Every stop is one more boundary of the cursor. On a synchronous device, for a cursor that
        is not bounded and outside of one, the work runs like any other operator.

        Args:
            work: Not yet launched.
            operator: Its name, for the observer.
        """
        work.launch()
        cursor, run_ahead = self._cursor, self._run_ahead
        if cursor is None or run_ahead is None or not cursor.is_bounded:
            return
        while run_ahead.wait_until_idle(self._wants_control):
            work.ring()
            run_ahead.drain()
            work.clear()
            if work.is_complete:
                return  # the next boundary is a moment away, and nothing was launched behind
            cursor.suspend()
            cursor.num_boundaries += 1
            if self.observer is not None:
                self.observer(operator)
            work.launch()

    def drain(self) -> None:
        """Return when the device has finished everything that was launched.

        Raises:
            Exception: Whatever the device reports.
        """
        if self._run_ahead is not None:
            self._run_ahead.drain()

    def enter(self, cursor: "Cursor[Any]") -> None:
        """Make this cursor the running one."""
        self._cursor = cursor

    def leave(self) -> None:
        """Nobody runs any more: boundaries become no-ops."""
        self._cursor = None

    def _wants_control(self) -> bool:
        cursor = self._cursor
        return cursor is not None and cursor.is_preemptible and self._should_yield()


def no_boundary() -> None:
    """Stand where a boundary would, and let everything pass."""


def _never() -> bool:
    return False
