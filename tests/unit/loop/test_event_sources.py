"""Events of all origins behind one interface, with real ZMQ sockets and a clock set by hand."""

import pytest
import zmq

from sglang_flowprefill.core import EventKind
from sglang_flowprefill.loop.event_sources import (
    EventSources,
    GrammarSource,
    MemorySource,
    MessageSource,
)
from sglang_flowprefill.testing import ManualClock


class World:
    """What the sources watch, changed by the tests."""

    def __init__(self, receiver):
        self.clock = ManualClock()
        self.num_compiling = 0
        self.num_compiled = 0
        self.room = (100, 4, 0.5)
        self.receiver = receiver
        self.sources = EventSources(
            MessageSource([receiver], self._receive),
            GrammarSource(lambda: self.num_compiling > 0, self._admit),
            MemorySource(lambda: self.room),
            self.clock,
        )

    def take(self):
        """Return the kinds of what has happened."""
        return [event.kind for event in self.sources.take()]

    def _receive(self):
        kinds = []
        while self.receiver.poll(0):
            kinds.append(EventKind(self.receiver.recv().decode()))
        return kinds

    def _admit(self):
        num_ready, self.num_compiled = self.num_compiled, 0
        self.num_compiling -= num_ready
        return num_ready


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


@pytest.fixture
def world(sockets):
    """Sources in which nothing has happened yet."""
    return World(sockets[0])


@pytest.fixture
def sender(sockets):
    """The other end of the scheduler's socket."""
    return sockets[1]


def test_nothing_happened_at_first(world):
    """A quiet server has no event at a boundary and none to take."""
    assert not world.sources.has_event()
    assert world.take() == []


def test_a_message_is_noticed_at_a_boundary_and_taken_once(world, sender):
    """Asking takes nothing in; taking does, and says what each message was."""
    sender.send(b"arrival")
    sender.send(b"abort")
    assert world.receiver.poll(1000)
    assert world.sources.has_event()
    assert world.sources.cause == "message"
    assert world.take() == [EventKind.ARRIVAL, EventKind.ABORT]
    assert not world.sources.has_event()
    assert world.take() == []


def test_boundaries_close_together_share_one_look(world, sender):
    """Looking costs as much as an operator over a few tokens: what comes is seen a little later."""
    assert not world.sources.has_event()
    sender.send(b"arrival")
    assert world.receiver.poll(1000)
    world.clock.now_s += 0.00009
    assert not world.sources.has_event()
    assert world.sources.last_quiet_s == 0.0, "nobody looked"
    world.clock.now_s += 0.00002
    assert world.sources.has_event()


def test_the_timer_goes_off_once(world):
    """A due time is one event, not one at every look."""
    world.sources.timer.due_s = 5.0
    world.clock.now_s = 4.9
    assert not world.sources.has_event()
    world.clock.now_s = 5.0
    assert world.sources.has_event()
    assert world.sources.cause == "timer"
    assert world.take() == [EventKind.TIMER]
    assert world.take() == []


def test_a_running_prefill_looks_for_grammars_now_and_then(world):
    """A compiler thread tells nobody: a boundary asks to look, but not at every boundary."""
    world.num_compiling = 2
    assert world.sources.has_event()
    assert world.sources.cause == "grammar"
    assert world.take() == []
    world.clock.now_s += 0.001
    assert not world.sources.has_event()
    world.clock.now_s += 0.1
    world.num_compiled = 2
    assert world.sources.has_event()
    assert world.take() == [EventKind.GRAMMAR_READY, EventKind.GRAMMAR_READY]
    world.clock.now_s += 0.1
    assert not world.sources.has_event(), "nobody waits for a grammar any more"


@pytest.mark.parametrize("more", [(101, 4, 0.5), (100, 5, 0.5), (90, 4, 0.6)])
def test_freed_memory_is_an_event_for_those_who_wait_for_it(world, more):
    """More slots, rows or unreserved share than when somebody was turned away: said once."""
    world.room = more
    assert world.take() == [], "nobody waits for memory"
    world.room = (100, 4, 0.5)
    world.sources.memory.watch()
    world.room = (60, 4, 0.5)
    assert world.take() == [], "others took some, none came free"
    world.room = more
    assert world.take() == [EventKind.KV_FREED]
    assert world.take() == []


def test_what_the_loop_posts_comes_in_its_place(world, sender):
    """Events are taken in the order in which they were noticed, whatever their origin."""
    world.clock.now_s = 1.0
    world.sources.post(EventKind.COMPLETION)
    world.clock.now_s = 2.0
    sender.send(b"arrival")
    assert world.receiver.poll(1000)
    events = world.sources.take()
    assert [(e.kind, e.time_s) for e in events] == [
        (EventKind.COMPLETION, 1.0),
        (EventKind.ARRIVAL, 2.0),
    ]


def test_blocking_is_bounded_by_the_last_quiet_look(world, sender):
    """What caused a yes came after the last no."""
    world.clock.now_s = 1.0
    world.sources.start_slice()
    world.clock.now_s = 1.5
    assert not world.sources.has_event()
    sender.send(b"arrival")
    assert world.receiver.poll(1000)
    world.clock.now_s = 1.7
    assert world.sources.has_event()
    assert world.sources.last_quiet_s == 1.5
