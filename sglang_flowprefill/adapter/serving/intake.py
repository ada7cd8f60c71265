"""What SGLang's messages put down until the loop picks it up, and the sockets that they come from.

Taking a message in may queue, abort and answer requests. It never asks the loop for anything: a
new request waits here to be judged, and a message that must find no prefill in flight waits here,
with all behind it, until the loop has seen to that.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import zmq

from sglang_flowprefill.adapter.serving.messages import needs_quiet_engine
from sglang_flowprefill.core import EventKind

_POLLIN = int(zmq.POLLIN)  # an enum's own & costs a microsecond, at every boundary


class Intake:
    """Requests and messages that the loop has not picked up yet.

    Attributes:
        held: Messages held back, in order; the first needs a quiet engine.
    """

    def __init__(self) -> None:
        self.held: list[Any] = []
        self._arrived: list[Any] = []

    def put_down(self, req: Any) -> None:
        """Keep a new ``Req`` for the loop."""
        self._arrived.append(req)

    def take_arrived(self) -> list[Any]:
        """Return the new ``Req`` objects since the last call."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def pass_on(self, messages: Sequence[Any], *, is_quiet: bool) -> list[Any]:
        """Return the messages to act on at once; hold back the rest.

        Args:
            messages: What has come, in order.
            is_quiet: True if no prefill is in flight.
        """
        if not self.held and is_quiet:
            return list(messages)
        for index, message in enumerate(messages):
            if self.held or needs_quiet_engine(message):
                self.held += messages[index:]
                return list(messages[:index])
        return list(messages)

    def take_held(self) -> list[Any]:
        """Return the messages held back; from now on none is."""
        held, self.held = self.held, []
        return held


class MessageSource:
    """The scheduler's input sockets as a source of events.

    Args:
        sockets: Input sockets; none on tensor-parallel followers, whose messages reach them
            through the leader.
        receive: Takes in what has come and returns the kind of each message.
    """

    name = "message"

    def __init__(
        self, sockets: Sequence[zmq.Socket], receive: Callable[[], Iterable[EventKind]]
    ) -> None:
        self._sockets = list(sockets)
        self._receive = receive
        self._poller = zmq.Poller()
        for socket in self._sockets:
            self._poller.register(socket, zmq.POLLIN)

    def is_ready(self, now_s: float) -> bool:  # noqa: ARG002 (protocol)
        """Tell whether a message waits.

        The raw file descriptor of a ZMQ socket is edge-triggered; EVENTS is the reliable test.
        """
        return any(socket.getsockopt(zmq.EVENTS) & _POLLIN for socket in self._sockets)

    def take(self, now_s: float) -> Iterable[EventKind]:  # noqa: ARG002 (protocol)
        """Take in all messages that have come."""
        return self._receive()

    def wait(self, timeout_s: float) -> None:
        """Sleep until a message comes, or the timeout.

        Without sockets return at once: a follower waits in the loop's next broadcast instead.
        """
        if self._sockets:
            self._poller.poll(timeout_s * 1000)
