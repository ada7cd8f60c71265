"""Bounds how far the host runs ahead of an asynchronous device.

On a GPU, Python launches operators long before they run. A prefill that stops at a boundary has
then stopped *launching*; what it launched before still runs, and an urgent prefill waits behind
it. ``RunAhead`` has at most k operators launched and unfinished: a mark notes the operator before
each boundary, and the next one is launched only once fewer than k marks are not done. Waiting for
that is also where the scheduler's events are looked for, so that an arrival meanwhile stops the
prefill at this boundary and not at the next.

One ``RunAhead`` serves all forward passes of a device, because they share its queue: what a
suspended prefill left in flight counts against the next.

An operator here is everything launched between two boundaries. What a forward pass launches
before its first boundary (its inputs, the embedding) may be in flight beside the k operators.
What no boundary follows is not counted: the end of a forward pass, a decode step. The scheduler
reads their results, and so waits for them, before it runs anything else.
"""

from collections import deque
from collections.abc import Callable

from sglang_flowprefill.executor.devices import Device, Mark

_POLL_INTERVAL_S = 20e-6  # Linux adds its timer slack, 50 us
_WATCH_INTERVAL_S = 0.0  # nothing is in flight behind: the device idles until the host looks


class RunAhead:
    """Keeps the host at most so many operators ahead of its device.

    Args:
        device: What runs the operators.
        max_in_flight: k, at least 1. One waits for every operator before it launches the next.

    Raises:
        ValueError: k is less than 1.

    Attributes:
        is_possible: False on a synchronous device: there is nothing to bound, and boundaries
            need not call here.
    """

    def __init__(self, device: Device, max_in_flight: int) -> None:
        if max_in_flight < 1:
            raise ValueError(f"at least 1 operator must be in flight, got {max_in_flight}")
        self._device = device
        self._max_in_flight = max_in_flight
        # Oldest first. Marks are done in this order, because a stream is worked off in order.
        self._marks: deque[Mark] = deque()
        self.is_possible = not device.is_synchronous

    @property
    def num_in_flight(self) -> int:
        """Operators noted and not finished, of all forward passes."""
        self._has_at_most(0)
        return len(self._marks)

    def reach_boundary(self, should_yield: Callable[[], bool]) -> bool:
        """Note the operators launched so far; return when to suspend or when there is room.

        Args:
            should_yield: Tells whether the scheduler wants control. Asked at least once, and
                again and again while waiting for room.

        Returns:
            True if the caller should suspend; at most k operators are in flight then. False if
            it may launch the next operator.

        Raises:
            Exception: Whatever the device reports.
        """
        self._marks.append(self._device.record())
        # More than k only if a forward pass began while k operators of others were in flight.
        # Yielding then would let each newcomer add one.
        self._wait_for(self._max_in_flight)
        return should_yield() or self.wait_for_room(should_yield)

    def wait_for_room(self, should_yield: Callable[[], bool]) -> bool:
        """Return when the next operator may be launched, or earlier to suspend.

        For a forward pass that comes back from a suspension, too: what was in flight then may
        still be, and others may have added theirs.

        Args:
            should_yield: As above. Not asked if there is room.

        Returns:
            True if the caller should suspend, False if it may launch the next operator.

        Raises:
            Exception: Whatever the device reports.
        """
        while not self._has_at_most(self._max_in_flight - 1):
            if should_yield():
                return True
            self._marks[0].wait(_POLL_INTERVAL_S)
        return False

    def wait_until_idle(self, should_yield: Callable[[], bool]) -> bool:
        """Return when everything launched so far has finished, or earlier if control is wanted.

        For the host that waits for an operator which it could stop.

        Args:
            should_yield: As above. Not asked once nothing is in flight.

        Returns:
            True if the scheduler wants control while something is in flight.

        Raises:
            Exception: Whatever the device reports.
        """
        self._marks.append(self._device.record())
        while not self._has_at_most(0):
            if should_yield():
                return True
            self._marks[0].wait(_WATCH_INTERVAL_S)
        return False

    def drain(self) -> None:
        """Return when everything launched so far has finished, noted or not.

        Whoever abandons a forward pass calls this before giving its memory back: operators in
        flight may still write there.

        Raises:
            Exception: Whatever the device reports.
        """
        if self.is_possible:
            self._marks.append(self._device.record())
            self._wait_for(0)

    def _wait_for(self, num_in_flight: int) -> None:
        while not self._has_at_most(num_in_flight):
            self._marks[0].wait(_POLL_INTERVAL_S)

    def _has_at_most(self, num_in_flight: int) -> bool:
        """Forget finished operators, only as many as needed: asking calls the driver."""
        marks = self._marks
        while len(marks) > num_in_flight and marks[0].is_done():
            self._device.reuse(marks.popleft())
        return len(marks) <= num_in_flight
