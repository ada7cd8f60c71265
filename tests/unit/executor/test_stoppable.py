"""Work that the device can stop: stopped for whoever comes, and completed all the same."""

import pytest
from asynchronous_device import AsynchronousDevice
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_flowprefill.executor import Checkpoint, Cursor, RunAhead
from sglang_flowprefill.executor.devices import SynchronousDevice
from sglang_flowprefill.testing import FakeEngineState

NUM_TILES = 5


class Tiles:
    """Stoppable work on a device that stands still: a launch does tiles until the bell rings.

    Attributes:
        done: Tiles computed, in order.
        ring_after: The bell is heard after so many tiles of a launch, if it has rung.
    """

    def __init__(self, device, ring_after=1):
        self.done = []
        self.ring_after = ring_after
        self._device = device
        self._is_rung = False

    @property
    def is_complete(self):
        """Asked only when nothing is in flight."""
        assert self._device.num_in_flight == 0
        return len(self.done) == NUM_TILES

    def launch(self):
        """Queue what is left."""
        self._device.launch(self._compute)

    def ring(self):
        """Stop after ``ring_after`` tiles."""
        self._is_rung = True

    def clear(self):
        """Asked only when nothing is in flight."""
        assert self._device.num_in_flight == 0
        self._is_rung = False

    def _compute(self):
        stop = len(self.done) + self.ring_after if self._is_rung else NUM_TILES
        self.done.extend(range(len(self.done), min(stop, NUM_TILES)))


@pytest.fixture
def device():
    """Return a device that stands still until the host waits for it."""
    with AsynchronousDevice() as device:
        yield device


def checkpoint_of(device, wants_control):
    """Return a checkpoint of this device that asks this function."""
    return Checkpoint(wants_control, RunAhead(device, 2))


def cursor_of(run, checkpoint, **kwargs):
    """Return a cursor over this function."""
    return Cursor(run, checkpoint, FakeEngineState({}, []), **kwargs)


def test_undisturbed_it_runs_once_and_has_finished_on_return(device):
    """What the host launches next reads a whole result."""
    checkpoint, work = checkpoint_of(device, lambda: False), Tiles(device)

    def run():
        checkpoint.run(work)
        assert work.done == list(range(NUM_TILES))
        assert device.num_in_flight == 0

    cursor = cursor_of(run, checkpoint)
    assert cursor.resume()
    assert cursor.num_boundaries == 0


def test_an_arrival_stops_it_and_suspends_the_cursor_with_an_idle_device(device):
    """Whoever came finds nothing in flight; the next resume goes on with the next tile."""
    seen = []
    checkpoint, work = checkpoint_of(device, lambda: True), Tiles(device, ring_after=2)
    checkpoint.observer = seen.append
    cursor = cursor_of(lambda: checkpoint.run(work, "down_proj"), checkpoint)
    assert not cursor.resume()
    assert work.done == [0, 1]
    assert device.num_in_flight == 0
    assert not cursor.resume()
    assert work.done == [0, 1, 2, 3]
    assert cursor.resume(), "complete: there is nothing to suspend"
    assert work.done == list(range(NUM_TILES))
    assert (cursor.num_suspensions, cursor.num_boundaries) == (2, 2)
    assert seen == ["down_proj"] * 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=20), st.integers(1, 7))
def test_whenever_control_is_wanted_every_tile_is_done_once(answers, ring_after):
    """Two at a time, one behind the other on the same device."""
    pending = iter(answers)
    with AsynchronousDevice() as device:
        checkpoint = checkpoint_of(device, lambda: next(pending, False))
        works = [Tiles(device, ring_after) for _ in range(2)]
        cursors = [cursor_of(lambda w=work: checkpoint.run(w), checkpoint) for work in works]
        while any(cursor.is_alive for cursor in cursors):
            for cursor in cursors:
                if cursor.is_alive:
                    cursor.resume()
        assert [work.done for work in works] == [list(range(NUM_TILES))] * 2


def test_a_cancelled_prefill_leaves_its_work_stopped_and_the_bell_silent(device):
    """Its memory may be given back; the next launch of another runs to its end."""
    checkpoint, work = checkpoint_of(device, lambda: True), Tiles(device)
    cursor = cursor_of(lambda: checkpoint.run(work), checkpoint)
    assert not cursor.resume()
    cursor.cancel()
    assert device.num_in_flight == 0
    assert not work._is_rung


@pytest.mark.parametrize("kind", ["outside", "unbounded"])
def test_where_nothing_may_be_suspended_it_is_launched_like_any_operator(device, kind):
    """Without waiting: the order of the device is enough."""
    checkpoint, work = checkpoint_of(device, lambda: True), Tiles(device)
    if kind == "outside":
        checkpoint.run(work)
    else:
        assert cursor_of(lambda: checkpoint.run(work), checkpoint, is_bounded=False).resume()
    assert device.num_in_flight == 1
    device.finish_all()
    assert work.done == list(range(NUM_TILES))


def test_on_a_synchronous_device_it_has_finished_when_launched():
    """There is nothing to watch."""

    class AtOnce:
        num_in_flight = 0

        def launch(self, operator):
            operator()

    checkpoint = Checkpoint(lambda: True, RunAhead(SynchronousDevice(), 1))
    work = Tiles(AtOnce())
    assert cursor_of(lambda: checkpoint.run(work), checkpoint).resume()
    assert work.done == list(range(NUM_TILES))
