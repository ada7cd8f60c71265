"""What messages put down until the loop picks it up, and real sockets as a source of events."""

import pytest
import zmq
from sglang.srt.managers.io_struct import (
    AbortReq,
    GetInternalStateReq,
    UpdateWeightFromDiskReqInput,
)

from sglang_flowprefill.adapter.serving.intake import Intake, MessageSource
from sglang_flowprefill.core import EventKind

ABORT = AbortReq(rid="r")
STATE = GetInternalStateReq()
WEIGHTS = UpdateWeightFromDiskReqInput(model_path="elsewhere")


def test_without_prefills_in_flight_every_message_is_acted_on():
    """New weights need no draining where nothing is suspended."""
    intake = Intake()
    assert intake.pass_on([ABORT, WEIGHTS, STATE], is_quiet=True) == [ABORT, WEIGHTS, STATE]
    assert intake.held == []


def test_new_weights_wait_and_everything_behind_them_too():
    """Order is kept: what came after the weights is served with the new ones."""
    intake = Intake()
    assert intake.pass_on([ABORT, WEIGHTS, STATE], is_quiet=False) == [ABORT]
    assert intake.pass_on([ABORT], is_quiet=True) == [], "the weights are still to come"
    assert intake.take_held() == [WEIGHTS, STATE, ABORT]
    assert intake.pass_on([ABORT], is_quiet=False) == [ABORT]


def test_new_requests_are_picked_up_once():
    """In the order in which they were put down."""
    intake = Intake()
    intake.put_down("a")
    intake.put_down("b")
    assert intake.take_arrived() == ["a", "b"]
    assert intake.take_arrived() == []


@pytest.fixture
def sockets():
    """A connected pair of sockets: the scheduler's, and a sender."""
    context = zmq.Context()
    receiver, sender = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    receiver.bind("inproc://scheduler")
    sender.connect("inproc://scheduler")
    yield receiver, sender
    receiver.close()
    sender.close()
    context.term()


def test_a_message_on_a_socket_is_noticed_and_taken_in_once(sockets):
    """Asking takes nothing in; taking does; sleeping ends with a message."""
    receiver, sender = sockets

    def receive():
        while receiver.poll(0):
            yield EventKind(receiver.recv().decode())

    source = MessageSource([receiver], receive)
    assert not source.is_ready(0.0)
    sender.send(b"arrival")
    source.wait(10.0)
    assert source.is_ready(0.0)
    assert source.is_ready(0.0)
    assert list(source.take(0.0)) == [EventKind.ARRIVAL]
    assert not source.is_ready(0.0)


def test_a_follower_listens_to_nothing():
    """Its messages come through the leader; it does not sleep either."""
    source = MessageSource([], list)
    source.wait(10.0)
    assert not source.is_ready(0.0)
