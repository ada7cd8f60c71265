"""The host stays at most k operators ahead of an asynchronous device."""

from itertools import cycle

import pytest
import torch
from asynchronous_device import AsynchronousDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import WIDTH
from torch import nn

from sglang_flowprefill.errors import UnsupportedSGLangError
from sglang_flowprefill.executor import Checkpoint, Cursor, find_operators, install_boundaries
from sglang_flowprefill.executor.devices import CudaDevice, SynchronousDevice, device_named
from sglang_flowprefill.executor.run_ahead import RunAhead
from sglang_flowprefill.testing import FakeEngineState


class Machine:
    """A host with a device and a scheduler that wants control when ``arrival`` is set."""

    def __init__(self, device, max_in_flight, **kwargs):
        self.device = device
        self.arrival = False
        self.num_polls = 0
        self.run_ahead = RunAhead(device, max_in_flight)
        self.checkpoint = Checkpoint(self.should_yield, self.run_ahead, **kwargs)

    def should_yield(self):
        """Tell whether somebody arrived."""
        self.num_polls += 1
        return self.arrival

    def cursor(self, run, **kwargs):
        """Return a cursor over this function."""
        state = FakeEngineState({}, [])
        return Cursor(run, self.checkpoint, state, **kwargs)

    def launching(self, num_operators, memory=None):
        """Return a forward pass that writes the number of each operator to ``memory``."""
        memory = [] if memory is None else memory

        def run():
            for index in range(num_operators):
                self.checkpoint.reach()
                self.device.launch(lambda index=index: memory.append(index))

        return run

    def arrive_while_waiting(self):
        """Let somebody arrive, instead of progress, when the host next waits."""
        progress = self.device.while_host_waits

        def arrive(_mark):
            self.arrival = True
            self.device.while_host_waits = progress

        self.device.while_host_waits = arrive


@pytest.fixture
def device():
    """Return a device that stands still until the host waits for it."""
    with AsynchronousDevice() as device:
        yield device


# ---- several ranks ----


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_asking_once_is_the_same_on_all_ranks(device, max_in_flight):
    """However long the device takes, each boundary asks once, and the bound holds all the same."""
    machine = Machine(device, max_in_flight, asks_once=True)
    machine.arrive_while_waiting()
    cursor = machine.cursor(machine.launching(8))
    num_slices = 1
    while not cursor.resume():
        num_slices += 1
        machine.arrival = num_slices < 4
    assert machine.num_polls == cursor.num_boundaries == 8
    assert num_slices == 4
    assert device.most_in_flight == max_in_flight


# ---- the bound ----


@pytest.mark.parametrize("max_in_flight", [1, 2, 3, 7])
def test_the_host_waits_with_exactly_k_in_flight(device, max_in_flight):
    """It launches k at once, and from then on one for every one that finishes."""
    machine = Machine(device, max_in_flight)
    waits = []

    def finish_one(_mark):
        waits.append(device.num_in_flight)
        device.finish(1)

    device.while_host_waits = finish_one
    assert machine.cursor(machine.launching(20)).resume()
    assert waits == [max_in_flight] * (20 - max_in_flight)
    assert device.most_in_flight == max_in_flight


def test_a_fast_device_is_never_waited_for(device):
    """Where the host is the slower one, a boundary costs a mark and a poll."""
    machine = Machine(device, 1)

    def run():
        for _ in range(5):
            machine.checkpoint.reach()
            device.launch(list)
            device.finish_all()

    def fail(_mark):
        pytest.fail("waited for an idle device")

    device.while_host_waits = fail
    assert machine.cursor(run).resume()
    assert (device.num_marks, machine.num_polls) == (5, 5)


def test_a_device_at_its_own_pace_is_never_further_behind(device):
    """Two threads in earnest: order and bound hold however they are scheduled."""
    machine, memory = Machine(device, 3), []
    device.run_freely()
    assert machine.cursor(machine.launching(300, memory)).resume()
    device.finish_all()
    assert device.most_in_flight <= 3
    assert memory == list(range(300))


def test_less_than_one_operator_in_flight_is_refused():
    """Nothing could ever be launched."""
    with pytest.raises(ValueError, match="got 0"):
        RunAhead(SynchronousDevice(), 0)


class Schedule:
    """Forward passes on a device whose progress and whose arrivals are drawn at random."""

    def __init__(self, device, max_in_flight, waits, progress):
        self.machine = Machine(device, max_in_flight)
        self._device = device
        self._max_in_flight = max_in_flight
        self._waits, self._progress = cycle([*waits, "progress"]), cycle(progress)
        device.while_host_waits = self._while_host_waits

    def forward_pass(self, program, hidden):
        """Return a forward pass whose every output depends on all before."""
        has_embedding, operators = program

        def run():
            if has_embedding:
                self._launch(100, hidden)
            for operator in operators:
                self.machine.checkpoint.reach()
                self._launch(operator, hidden)

        return run

    def move(self, cursor, move):
        """Resume or cancel, and check what may be in flight afterwards."""
        self.machine.arrival = False
        getattr(cursor, move)()
        if cursor.is_finished:
            self._device.finish_all()  # as the engine does to read the first token
        assert self._device.num_in_flight <= (self._max_in_flight if cursor.is_alive else 0)

    def _launch(self, operator, hidden):
        self._device.launch(lambda: hidden.append(hidden[-1] * 31 + operator))
        self._device.finish(next(self._progress))

    def _while_host_waits(self, _mark):
        if next(self._waits) == "arrival":
            self.machine.arrival = True
        else:
            self._device.finish(1)


def outputs_of(program):
    """Return what a forward pass computes alone."""
    has_embedding, operators = program
    hidden = [1]
    for operator in [100] * has_embedding + operators:
        hidden.append(hidden[-1] * 31 + operator)
    return hidden


programs = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(0, 99), max_size=8)), min_size=1, max_size=4
)
moves = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["resume"] * 4 + ["cancel"])))
waits = st.lists(st.sampled_from(["progress", "arrival"]), max_size=6)
progress = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(programs, moves, waits, progress, st.integers(1, 4))
def test_any_schedule_keeps_the_bound_and_the_results(programs, moves, waits, progress, k):
    """Whoever is suspended, resumed or cancelled when, and however fast the device is.

    At most k operators are in flight, one more launch where a forward pass begins with an
    embedding, and at most k in every suspension. What finishes computes what it would alone.
    """
    with AsynchronousDevice() as device:
        schedule = Schedule(device, k, waits, progress)
        outputs = [[1] for _ in programs]
        cursors = [
            schedule.machine.cursor(schedule.forward_pass(program, hidden))
            for program, hidden in zip(programs, outputs, strict=True)
        ]
        for index, move in moves:
            cursor = cursors[index % len(cursors)]
            if cursor.is_alive:
                schedule.move(cursor, move)
        for cursor in cursors:
            while cursor.is_alive:
                schedule.move(cursor, "resume")
        assert device.most_in_flight <= k + any(has_embedding for has_embedding, _ in programs)
        for cursor, program, hidden in zip(cursors, programs, outputs, strict=True):
            assert not cursor.is_finished or hidden == outputs_of(program)


# ---- suspension ----


def test_an_arrival_during_the_wait_suspends_at_this_boundary(device):
    """With k operators in flight, before the next is launched; nothing had to finish for it."""
    machine, memory = Machine(device, 3), []
    cursor = machine.cursor(machine.launching(10, memory))
    machine.arrive_while_waiting()
    assert not cursor.resume()
    assert (cursor.num_boundaries, cursor.num_suspensions) == (4, 1)
    assert device.num_in_flight == machine.run_ahead.num_in_flight == 3
    assert memory == []


def test_an_arrival_before_the_boundary_suspends_without_waiting(device):
    """Whether or not there is room: the urgent prefill's host work overlaps what is in flight."""
    machine = Machine(device, 2)

    def arrive_at_third_launch():
        for index in range(5):
            machine.checkpoint.reach()
            device.launch(list)
            machine.arrival = index == 1

    def fail(_mark):
        pytest.fail("waited although somebody had arrived")

    device.while_host_waits = fail
    assert not machine.cursor(arrive_at_third_launch).resume()
    assert device.num_in_flight == 2


def test_a_resumed_prefill_waits_again_before_it_launches(device):
    """It may come back before anything has finished, and leave again at the same boundary."""
    machine, memory = Machine(device, 2), []
    cursor = machine.cursor(machine.launching(6, memory))
    machine.arrive_while_waiting()
    assert not cursor.resume()
    assert not cursor.resume()  # the arrival is still there
    assert (cursor.num_boundaries, cursor.num_suspensions) == (3, 2)
    machine.arrival = False
    assert cursor.resume()
    device.finish_all()
    assert device.most_in_flight == 2
    assert memory == list(range(6))


def test_what_a_suspended_prefill_left_in_flight_counts_against_the_next(device):
    """Prefills share one queue: the urgent one launches behind k - 1 at most, its own included."""
    machine, memory = Machine(device, 2), []
    document = machine.cursor(machine.launching(6, memory))
    machine.arrive_while_waiting()
    assert not document.resume()
    machine.arrival = False
    seen_waiting = []

    def finish_one(_mark):
        seen_waiting.append(list(memory))
        device.finish(1)

    def urgent():
        device.launch(lambda: memory.append("embedding"))
        machine.launching(1, memory)()
        assert memory == [0, 1], "what is left in flight is its own embedding"

    device.while_host_waits = finish_one
    assert machine.cursor(urgent).resume()
    device.finish_all()
    assert seen_waiting == [[], [0]]
    assert document.resume()
    device.finish_all()
    assert memory == [0, 1, "embedding", 0, 2, 3, 4, 5]


def test_prefills_that_only_begin_do_not_add_up(device):
    """Each launches an embedding, then is suspended: k in flight, however many there are."""
    machine = Machine(device, 2)
    machine.arrival = True

    def begin():
        device.launch(list)
        machine.checkpoint.reach()

    for _ in range(5):
        assert not machine.cursor(begin).resume()
        assert device.num_in_flight <= 2
    assert device.most_in_flight == 3


def test_a_prefill_told_to_run_through_waits_and_asks_nobody(device):
    """Draining bounds run-ahead too, so that costs are measured as they will be."""
    machine, memory = Machine(device, 2), []
    machine.arrival = True
    cursor = machine.cursor(machine.launching(6, memory), is_preemptible=False)
    assert cursor.resume()
    assert (machine.num_polls, device.most_in_flight) == (0, 2)


# ---- exemptions ----


def test_an_unbounded_prefill_makes_no_marks_and_never_waits(device):
    """A short prompt is launched in one go."""
    machine = Machine(device, 2)
    cursor = machine.cursor(machine.launching(9), is_bounded=False)
    assert cursor.resume()
    assert (device.num_marks, device.num_in_flight) == (0, 9)
    assert cursor.num_boundaries == machine.num_polls == 9


def test_the_next_bounded_prefill_waits_for_an_unbounded_one(device):
    """Its first mark lies behind all of it."""
    machine, memory = Machine(device, 1), []
    assert machine.cursor(machine.launching(3, memory), is_bounded=False).resume()
    assert machine.cursor(machine.launching(2, memory)).resume()
    assert memory == [0, 1, 2, 0]


def test_a_synchronous_device_is_never_asked():
    """On a CPU a boundary is one poll, as without run-ahead."""

    class Unasked(SynchronousDevice):
        record = reuse = None  # calling either would fail

        def launch(self, operator):
            operator()

    machine, memory = Machine(Unasked(), 1), []
    cursor = machine.cursor(machine.launching(4, memory))
    assert cursor.resume()
    machine.run_ahead.drain()
    assert (memory, machine.num_polls, cursor.num_boundaries) == ([0, 1, 2, 3], 4, 4)
    assert machine.run_ahead.num_in_flight == 0


def test_a_synchronous_device_keeps_every_promise_of_a_device():
    """Asked all the same, it answers that everything has finished."""
    run_ahead = RunAhead(SynchronousDevice(), 1)
    assert not any(run_ahead.reach_boundary(lambda: False) for _ in range(3))
    assert run_ahead.reach_boundary(lambda: True)
    assert run_ahead.num_in_flight == 0
    assert SynchronousDevice().record().wait(60.0) is None


def test_boundaries_outside_a_cursor_make_no_marks(device):
    """Decode steps share the hooked model and are read at once."""
    Machine(device, 1).launching(3)()
    assert (device.num_marks, device.num_in_flight) == (0, 3)


# ---- cancellation ----


@pytest.mark.parametrize("num_boundaries", range(1, 6))
def test_nothing_is_in_flight_when_a_cancelled_prefill_gives_its_memory_back(
    device, num_boundaries
):
    """Wherever it stood: its next owner's data is not written over."""
    machine, memory = Machine(device, 2), []

    def run():
        for _ in range(num_boundaries - 1):
            machine.checkpoint.reach()
            device.launch(lambda: memory.append("document"))
        machine.arrival = True
        machine.checkpoint.reach()

    cursor = machine.cursor(run)
    assert not cursor.resume()
    cursor.cancel()
    assert device.num_in_flight == machine.run_ahead.num_in_flight == 0
    assert memory == ["document"] * (num_boundaries - 1)


def test_what_cleaning_up_launches_is_waited_for_also_if_it_fails(device):
    """Even a cancellation that raises leaves nothing in flight."""
    machine = Machine(device, 2)

    def run():
        try:
            machine.checkpoint.reach()
        finally:
            device.launch(list)
            raise ZeroDivisionError("clean-up")

    machine.arrival = True
    cursor = machine.cursor(run)
    assert not cursor.resume()
    with pytest.raises(ZeroDivisionError, match="clean-up"):
        cursor.cancel()
    assert device.num_in_flight == 0


def test_others_go_on_after_a_cancellation(device):
    """The queue is empty then, and the bound as before."""
    machine, memory = Machine(device, 2), []
    cancelled, other = (machine.cursor(machine.launching(5, memory)) for _ in range(2))
    machine.arrive_while_waiting()
    assert not cancelled.resume()
    cancelled.cancel()
    machine.arrival = False
    assert other.resume()
    device.finish_all()
    assert memory == [0, 1, 0, 1, 2, 3, 4]
    assert device.most_in_flight == 2


# ---- errors of the device ----


def fail():
    """Fail the way a kernel does: later, elsewhere."""
    raise ZeroDivisionError("kernel")


def test_an_error_of_the_device_comes_out_of_resume(device):
    """At a boundary after the operator that failed; the host neither hangs nor launches on."""
    machine = Machine(device, 2)

    def run():
        for operator in (list, fail, list, list, list, list):
            machine.checkpoint.reach()
            device.launch(operator)

    cursor = machine.cursor(run)
    with pytest.raises(ZeroDivisionError, match="kernel"):
        cursor.resume()
    assert not cursor.is_alive
    assert cursor.num_boundaries == 4
    assert machine.checkpoint.cursor is None


def test_an_error_of_the_device_comes_out_of_drain(device):
    """Memory is not given back as if nothing had happened."""
    machine = Machine(device, 2)
    device.launch(fail)
    with pytest.raises(ZeroDivisionError, match="kernel"):
        machine.run_ahead.drain()


# ---- a real model whose operators run later ----


class DeferredLinear(nn.Linear):
    """A linear layer that returns its output before it is computed."""

    device = None

    def forward(self, inputs):
        """Launch the product into a fresh output."""
        output = torch.full((len(inputs), self.out_features), torch.nan)
        self.device.launch(lambda: torch.addmm(self.bias, inputs, self.weight.T, out=output))
        return output


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_a_model_on_an_asynchronous_device_gives_the_same_bits(device, max_in_flight):
    """Three forward passes, suspended at every boundary and switched, equal three plain runs."""
    torch.manual_seed(5)
    model = nn.Sequential(*(DeferredLinear(WIDTH, WIDTH) for _ in range(6)))
    model.requires_grad_(requires_grad=False)
    for layer in model:
        layer.device = device
    inputs = [torch.randn(num_tokens, WIDTH) for num_tokens in (3, 5, 8)]
    expected = [model(x) for x in inputs]
    device.finish_all()
    assert device.most_in_flight == 18, "without boundaries all of it is launched at once"

    device.most_in_flight = 0
    machine = Machine(device, max_in_flight)
    install_boundaries(find_operators(model, {DeferredLinear: "linear"}), machine.checkpoint.reach)
    cursors = [machine.cursor(lambda x=x: model(x)) for x in inputs]
    machine.arrival = True
    unfinished = list(cursors)
    while unfinished:
        cursor = unfinished.pop(0)
        if cursor.resume():
            device.finish_all()  # as the engine does to read the first token
        else:
            unfinished.append(cursor)
            device.finish(1)
    assert device.most_in_flight <= max_in_flight
    for cursor, output in zip(cursors, expected, strict=True):
        assert torch.equal(cursor.result, output)


# ---- CUDA, as far as it can be seen without ----


class FakeCudaEvent:
    """Counts events and is done when told so."""

    all_events = ()

    def __init__(self, **kwargs):
        assert not kwargs, "timing costs, and blocking events are for synchronize()"
        FakeCudaEvent.all_events += (self,)
        self.num_records = 0
        self.num_queries_until_done = 0

    def record(self):
        """Record on the current stream, the only one without an argument."""
        self.num_records += 1
        self.num_queries_until_done = 2

    def query(self):
        """Become done at the third question."""
        self.num_queries_until_done -= 1
        return self.num_queries_until_done < 0


def test_cuda_events_are_reused(monkeypatch):
    """However long the prefill: no more events than operators in flight, and one."""
    monkeypatch.setattr(torch.cuda, "Event", FakeCudaEvent)
    monkeypatch.setattr(FakeCudaEvent, "all_events", ())
    naps = []
    monkeypatch.setattr("sglang_flowprefill.executor.devices.time.sleep", naps.append)
    run_ahead = RunAhead(CudaDevice(), 3)
    assert not any(run_ahead.reach_boundary(lambda: False) for _ in range(50))
    run_ahead.drain()
    assert run_ahead.num_in_flight == 0
    assert sum(event.num_records for event in FakeCudaEvent.all_events) == 51
    assert len(FakeCudaEvent.all_events) <= 4
    assert 0.0 < max(naps) < 0.001


@pytest.mark.parametrize(
    ("name", "device_type"),
    [("cpu", SynchronousDevice), ("cuda", CudaDevice), ("cuda:1", CudaDevice)],
)
def test_devices_go_by_torch_names(name, device_type):
    """Nothing is touched before the first boundary, so this works without a GPU."""
    assert type(device_named(name)) is device_type


def test_an_unknown_device_is_refused():
    """It might run behind the host unseen."""
    with pytest.raises(UnsupportedSGLangError, match="xpu"):
        device_named("xpu:0")
