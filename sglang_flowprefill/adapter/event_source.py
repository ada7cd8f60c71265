"""Where the scheduler process hears of events: its ZMQ sockets and a few timers.

Both are watched on the scheduler's own thread (ZMQ sockets are not thread-safe). A boundary asks
``has_event`` (about 4 us for two sockets); an idle scheduler sleeps in ``wait``.
"""

import time
from collections.abc import Sequence

import zmq


class EventSource:
    """Watches sockets and one wake-up time.

    Args:
        sockets: The scheduler's input sockets; empty on tensor-parallel followers, whose events
            all reach them through the leader.

    Attributes:
        last_quiet_s: When it last saw nothing to do.
        cause: What the last positive answer was about: a message or the timer.
    """

    def __init__(self, sockets: Sequence[zmq.Socket]) -> None:
        self._sockets = list(sockets)
        self._poller = zmq.Poller()
        for socket in self._sockets:
            self._poller.register(socket, zmq.POLLIN)
        self._wake_up_s = float("inf")
        self.last_quiet_s = 0.0
        self.cause = ""

    def arm(self, wake_up_s: float) -> None:
        """Start watching for one slice; ``has_event`` is true from ``wake_up_s`` on."""
        self._wake_up_s = wake_up_s
        self.last_quiet_s = time.monotonic()

    def has_event(self) -> bool:
        """Tell whether the scheduler should look: a message came, or the wake-up time passed.

        ``last_quiet_s`` keeps the last time the answer was no: what caused a yes came after it,
        which bounds from above how long a running prefill has blocked it.
        """
        now_s = time.monotonic()
        if now_s >= self._wake_up_s:
            self.cause = "timer"
            return True
        # The raw file descriptor of a ZMQ socket is edge-triggered; EVENTS is the reliable test.
        if any(socket.getsockopt(zmq.EVENTS) & zmq.POLLIN for socket in self._sockets):
            self.cause = "message"
            return True
        self.last_quiet_s = now_s
        return False

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a message comes; return False if the timeout came first.

        Without sockets return at once: a follower waits in the loop's next broadcast instead.
        """
        if not self._sockets:
            return False
        return bool(self._poller.poll(timeout_s * 1000))


class StressEventSource(EventSource):
    """Interrupts at every boundary: for tests that results do not depend on where that happens."""

    def has_event(self) -> bool:
        """Say yes, always."""
        self.cause = "stress"
        return True
