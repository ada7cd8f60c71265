"""The way of a snapshot from the scheduler process to the one that speaks HTTP.

Not SGLang's way (``/server_info``): there the question is a message on the scheduler's own socket,
which a running prefill must yield for and which costs a scheduling round. Here a thread of the
scheduler process sleeps in ``accept`` on a socket of its own; who connects is sent one snapshot
and hung up on. While nobody asks, it costs nothing; an answer costs the scheduler the moment in
which the thread holds the interpreter.

The socket has an abstract name (Linux), so a killed server leaves no file. The kernel tells whose
process connects: another user gets nothing.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable

from sglang_flowprefill.errors import StateUnavailableError

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 3.0
_UCRED = struct.Struct("3i")  # pid, uid, gid


def new_address() -> str:
    """Return a name that nobody else uses or guesses, for the schedulers of one server."""
    return f"\0sglang-flowprefill-{secrets.token_hex(16)}"


def address_of_rank(address: str, dp_rank: int | None) -> str:
    """Return the name of one data-parallel rank's scheduler; without ranks there is one."""
    return f"{address}-{dp_rank or 0}"


class StateServer:
    """Sends a snapshot to everyone who connects, from a thread of its own.

    Args:
        address: As from ``address_of_rank``.
        snapshot: Returns the bytes to send. Called in the thread.

    Raises:
        OSError: The address is taken.
    """

    def __init__(self, address: str, snapshot: Callable[[], bytes]) -> None:
        self._snapshot = snapshot
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(address)
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve, name="flowprefill-state", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection:
                connection.settimeout(ANSWER_TIMEOUT_S)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        if _user_of(connection) != os.getuid():
            return
        try:
            connection.sendall(self._snapshot())
        except OSError:
            pass  # whoever asked has gone
        except Exception:  # the next question shall be answered again
            logger.exception("FlowPrefill: no snapshot of the scheduler could be made")


async def ask_state(address: str, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
    """Return a snapshot of the scheduler.

    Raises:
        StateUnavailableError: It has ended, or does not answer in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _read_all(address)
    except TimeoutError:
        raise StateUnavailableError(
            f"the scheduler process has not answered within {timeout_s:g} s; it may be stuck: see "
            "the server's log"
        ) from None
    except OSError as error:
        raise StateUnavailableError(
            f"the scheduler process cannot be reached ({error.strerror or error}); it has ended "
            "or does not run yet: see the server's log"
        ) from error
    if not answer:
        raise StateUnavailableError("the scheduler process gave no answer: see the server's log")
    return answer


async def _read_all(address: str) -> bytes:
    # Connected by hand: uvloop, which SGLang runs on, takes no abstract name.
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(0.0)
    try:
        await asyncio.get_running_loop().sock_connect(connection, address)
        reader, writer = await asyncio.open_unix_connection(sock=connection)
    except BaseException:
        connection.close()
        raise
    try:
        return await reader.read()
    finally:
        writer.close()


def _user_of(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    return int(uid)
