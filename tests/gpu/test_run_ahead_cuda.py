"""The bound on run-ahead on a real GPU.

``python -m pytest -m gpu tests/gpu`` runs these tests and fails where there is no CUDA device;
the default command deselects them. They need torch, Triton, greenlet and hypothesis only.
"""

import pytest
import torch

from sglang_flowprefill.executor.devices import CudaDevice
from sglang_flowprefill.executor.run_ahead import RunAhead

pytestmark = pytest.mark.gpu

MAX_IN_FLIGHT = 3
NUM_OPERATORS = 60
OPERATOR_CYCLES = 20_000_000  # about 10 ms, where a launch takes microseconds


class Operators:
    """Launches kernels that do nothing for a while, with an event behind each."""

    def __init__(self):
        torch.cuda.synchronize()
        self._ends = []

    def launch(self):
        """Launch one."""
        torch.cuda._sleep(OPERATOR_CYCLES)
        end = torch.cuda.Event()
        end.record()
        self._ends.append(end)

    @property
    def num_in_flight(self):
        """Operators launched and unfinished, by events that the code under test does not know."""
        return sum(not end.query() for end in self._ends)


@pytest.fixture
def operators():
    """Return operators on an idle device, leaving it idle."""
    yield Operators()
    torch.cuda.synchronize()


def test_without_a_bound_the_host_runs_far_ahead(operators):
    """The control: what the next test counts would be more, were it not bounded."""
    for _ in range(NUM_OPERATORS):
        operators.launch()
    assert operators.num_in_flight > 2 * MAX_IN_FLIGHT


def test_at_most_k_operators_are_in_flight(operators):
    """Right after every launch."""
    run_ahead = RunAhead(CudaDevice(), MAX_IN_FLIGHT)
    for _ in range(NUM_OPERATORS):
        assert not run_ahead.reach_boundary(lambda: False)
        operators.launch()
        assert operators.num_in_flight <= MAX_IN_FLIGHT


def test_an_arrival_during_a_wait_is_noticed_with_at_most_k_in_flight(operators):
    """The boundary returns when the scheduler wants control, not when there is room."""
    run_ahead = RunAhead(CudaDevice(), MAX_IN_FLIGHT)
    for _ in range(MAX_IN_FLIGHT):
        assert not run_ahead.reach_boundary(lambda: False)
        operators.launch()
    answers = iter([False, True])  # quiet at the boundary, an arrival in the wait
    assert run_ahead.reach_boundary(lambda: next(answers))
    assert next(answers, None) is None
    assert operators.num_in_flight <= MAX_IN_FLIGHT


def test_nothing_is_in_flight_after_drain(operators):
    """Also what no boundary followed."""
    run_ahead = RunAhead(CudaDevice(), MAX_IN_FLIGHT)
    assert not run_ahead.reach_boundary(lambda: False)
    for _ in range(NUM_OPERATORS):
        operators.launch()
    run_ahead.drain()
    assert operators.num_in_flight == run_ahead.num_in_flight == 0
