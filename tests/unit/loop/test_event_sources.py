"""Events of all origins behind one interface, with a clock set by hand."""

import pytest

from sglang_flowprefill.core import EventKind
from sglang_flowprefill.loop.event_sources import EventSources, GrammarSource, MemorySource
from sglang_flowprefill.testing import ManualClock


class Messages:
    """A source that a test puts events into."""

    name = "message"

    def __init__(self):
        self.coming = []

    def is_ready(self, now_s):
        """Tell whether something came."""
        return bool(self.coming)

    def take(self, now_s):
        """Take it in."""
        taken, self.coming = self.coming, []
        return taken


class World:
    """What the sources watch, changed by the tests."""

    def __init__(self):
        self.clock = ManualClock()
        self.num_compiling = 0
        self.num_compiled = 0
        self.room = (100, 4, 0.5)
        self.waits = []
        self.messages = Messages()
        self.sources = EventSources(
            [self.messages, GrammarSource(lambda: self.num_compiling > 0, self._admit)],
            MemorySource(lambda: self.room),
            self.waits.append,
            self.clock,
        )

    def send(self, kind):
        """Let a message come."""
        self.messages.coming.append(kind)

    def take(self):
        """Return the kinds of what has happened."""
        return [event.kind for event in self.sources.take()]

    def _admit(self):
        num_ready, self.num_compiled = self.num_compiled, 0
        self.num_compiling -= num_ready
        return num_ready


@pytest.fixture
def world():
    """Sources in which nothing has happened yet."""
    return World()


def test_nothing_happened_at_first(world):
    """A quiet server has no event at a boundary and none to take."""
    assert not world.sources.has_event()
    assert world.take() == []


def test_a_message_is_noticed_at_a_boundary_and_taken_once(world):
    """Asking takes nothing in; taking does, and says what each message was."""
    world.send(EventKind.ARRIVAL)
    world.send(EventKind.ABORT)
    assert world.sources.has_event()
    assert world.sources.cause == "message"
    assert world.take() == [EventKind.ARRIVAL, EventKind.ABORT]
    assert not world.sources.has_event()
    assert world.take() == []


def test_boundaries_close_together_share_one_look(world):
    """Looking costs as much as an operator over a few tokens: what comes is seen a little later."""
    assert not world.sources.has_event()
    world.send(EventKind.ARRIVAL)
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


def test_what_the_loop_posts_comes_in_its_place(world):
    """Events are taken in the order in which they were noticed, whatever their origin."""
    world.clock.now_s = 1.0
    world.sources.post(EventKind.COMPLETION)
    world.clock.now_s = 2.0
    world.send(EventKind.ARRIVAL)
    events = world.sources.take()
    assert [(e.kind, e.time_s) for e in events] == [
        (EventKind.COMPLETION, 1.0),
        (EventKind.ARRIVAL, 2.0),
    ]


def test_blocking_is_bounded_by_the_last_quiet_look(world):
    """What caused a yes came after the last no."""
    world.clock.now_s = 1.0
    world.sources.start_slice()
    world.clock.now_s = 1.5
    assert not world.sources.has_event()
    world.send(EventKind.ARRIVAL)
    world.clock.now_s = 1.7
    assert world.sources.has_event()
    assert world.sources.last_quiet_s == 1.5


def test_what_the_loop_has_done_can_be_taken_alone(world):
    """Cancellations that taking messages in led to count for the round of those messages."""
    world.sources.post(EventKind.ABORT)
    world.send(EventKind.ARRIVAL)
    assert [event.kind for event in world.sources.take_posted()] == [EventKind.ABORT]
    assert world.take() == [EventKind.ARRIVAL]


def test_an_engine_may_name_the_cause_of_a_yield_itself(world):
    """A virtual clock knows when the event was, without looking."""
    world.sources.note_yield("arrival", 0.25)
    assert (world.sources.cause, world.sources.last_quiet_s) == ("arrival", 0.25)


def test_sleeping_is_left_to_whoever_owns_the_sockets(world):
    """The loop says for how long at most."""
    world.sources.wait(0.5)
    assert world.waits == [0.5]
