"""Observers are told everything, and can do no harm."""

import logging

from sglang_flowprefill.core import EventKind
from sglang_flowprefill.loop.observer import Observer, Observers


class Listener(Observer):
    """Remembers the events that it was told."""

    def __init__(self):
        self.kinds = []

    def on_event(self, kind):
        """Remember."""
        self.kinds.append(kind)


class Broken(Listener):
    """Raises at the second event."""

    def on_event(self, kind):
        """Remember, or raise."""
        super().on_event(kind)
        if len(self.kinds) == 2:
            raise RuntimeError("disk full")


def test_everybody_is_told_in_order():
    """Each with the same arguments; those that do not listen are not called."""
    first, second = Listener(), Listener()
    observers = Observers([first, Observer(), second])
    observers.tell(Observer.on_event, EventKind.ARRIVAL)
    observers.tell(Observer.on_decode, 0.0, 1.0, 2)
    assert first.kinds == second.kinds == [EventKind.ARRIVAL]


def test_one_that_raises_is_removed_with_one_line_and_the_others_go_on(caplog):
    """The loop never sees the error; the one behind it is told the same event."""
    broken, sound = Broken(), Listener()
    observers = Observers([broken, sound])
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            observers.tell(Observer.on_event, EventKind.TIMER)
    assert len(broken.kinds) == 2
    assert len(sound.kinds) == 5
    (record,) = caplog.records
    assert "Broken" in record.getMessage()
    assert "disk full" in record.getMessage()
