"""A snapshot crosses from one thread or process to another, or the reader is told why not."""

import asyncio
import socket
import threading

import pytest
import uvloop

from sglang_flowprefill.errors import StateUnavailableError
from sglang_flowprefill.observe.state_socket import (
    StateServer,
    address_of_rank,
    ask_state,
    new_address,
)

LONG = b"x" * 3_000_000  # more than a socket's buffer


def ask(address, runner=asyncio.run, **options):
    """Ask once, outside any event loop."""
    return runner(ask_state(address, **options))


@pytest.fixture
def serve():
    """Start servers that are closed at the end."""
    servers = []

    def start(snapshot):
        address = address_of_rank(new_address(), None)
        servers.append(StateServer(address, snapshot))
        return address

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_every_question_is_answered_with_a_new_snapshot(serve, runner):
    """Two questions get two snapshots, whole, in the event loop of SGLang and in Python's own."""
    snapshots = iter([b"first", LONG])
    address = serve(lambda: next(snapshots))
    assert ask(address, runner) == b"first"
    assert ask(address, runner) == LONG


def test_nothing_runs_while_nobody_asks(serve):
    """No snapshot is taken but for a question."""
    taken = []
    address = serve(lambda: taken.append(1) or b"state")
    assert taken == []
    ask(address)
    assert taken == [1]


def test_a_snapshot_that_fails_is_logged_and_the_next_one_answered(serve, caplog):
    """A mistake in one answer is no end of the answering."""
    snapshots = iter([ZeroDivisionError("on purpose"), b"good"])

    def snapshot():
        made = next(snapshots)
        if isinstance(made, Exception):
            raise made
        return made

    address = serve(snapshot)
    with pytest.raises(StateUnavailableError, match="gave no answer"):
        ask(address)
    assert "on purpose" in caplog.text
    assert ask(address) == b"good"


def test_a_reader_that_hangs_up_disturbs_nobody(serve):
    """Whoever connects and leaves without reading does not stop the answers to others."""
    address = serve(lambda: LONG)
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(address)
    assert ask(address) == LONG


def test_a_scheduler_that_has_ended_is_said_to_have_ended():
    """Nobody listens: the error says so and where to look."""
    with pytest.raises(StateUnavailableError, match=r"has ended.*log"):
        ask(address_of_rank(new_address(), None))


def test_a_scheduler_that_is_stuck_is_not_waited_for(serve):
    """After the timeout the error says that there was no answer."""
    release = threading.Event()
    address = serve(lambda: b"late" * release.wait(20.0))
    try:
        with pytest.raises(StateUnavailableError, match=r"not answered within 0\.2 s"):
            ask(address, timeout_s=0.2)
    finally:
        release.set()


def test_data_parallel_ranks_answer_apart(serve):
    """Each rank of one server has an address of its own, and no two servers share one."""
    address = new_address()
    ranks = {address_of_rank(address, rank) for rank in (None, 0, 1, 2)}
    assert len(ranks) == 3
    assert address_of_rank(new_address(), 0) not in ranks


def test_another_user_is_told_nothing(serve, monkeypatch):
    """A process of another user gets no byte."""
    address = serve(lambda: b"state")
    monkeypatch.setattr("os.getuid", lambda: 123456)
    with pytest.raises(StateUnavailableError, match="gave no answer"):
        ask(address)
