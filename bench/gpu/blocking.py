"""Blocking time and what avoiding it costs, on the device.

*Blocking* of an arrival: from its moment to the moment at which everything launched before has
finished and the device could begin with something urgent. This is the whole of it, the host's
part and the device's; a server adds the way of the request to its scheduler.

Arrivals are a Poisson process in the running time of the prefill, so each finds it at a random
moment; where the host launches everything at once only the first of a run would (the others find
a device that is working off the queue), and there one arrival a run falls uniformly into it.
"""

import math
import random
from collections.abc import Callable
from time import perf_counter

import torch

from bench.gpu.victim import Cut, Victim
from sglang_flowprefill.executor import Cursor

Begin = Callable[[], Cursor[torch.Tensor]]


def blocking_waits_s(
    victim: Victim,
    begin: Begin,
    cut: Cut,
    *,
    forward_s: float,
    layer_s: float,
    duration_s: float,
    rng: random.Random,
) -> list[float]:
    """Return the waits of arrivals at random moments.

    Args:
        victim: The running prefill.
        begin: Starts it anew.
        cut: How it is cut.
        forward_s: How long it takes undisturbed.
        layer_s: One layer of it; arrivals are about one and a half of these apart.
        duration_s: Measure about this long, and at least one arrival.
        rng: Draws the moments.
    """
    end_s = perf_counter() + duration_s
    if cut.run_ahead is None:
        return _uniform_waits_s(victim, begin, forward_s, end_s, rng)
    return _poisson_waits_s(victim, begin, 1.5 * layer_s, end_s, rng)


def _uniform_waits_s(
    victim: Victim, begin: Begin, forward_s: float, end_s: float, rng: random.Random
) -> list[float]:
    waits_s: list[float] = []
    while not waits_s or perf_counter() < end_s:
        cursor = begin()
        victim.due_s = perf_counter() + rng.uniform(0.0, forward_s)
        is_finished = cursor.resume()
        wait_s = _device_is_free_s() - victim.due_s
        if wait_s > 0.0:
            waits_s.append(wait_s)
        _run_to_the_end(victim, cursor, is_finished=is_finished)
    return waits_s


def _poisson_waits_s(
    victim: Victim, begin: Begin, mean_gap_s: float, end_s: float, rng: random.Random
) -> list[float]:
    waits_s: list[float] = []
    gap_s = rng.expovariate(1.0 / mean_gap_s)
    while not waits_s or perf_counter() < end_s:
        cursor, is_finished = begin(), False
        while not is_finished:
            start_s = perf_counter()
            victim.due_s = start_s + gap_s
            is_finished = cursor.resume()
            free_s = _device_is_free_s()
            if free_s > victim.due_s:
                waits_s.append(free_s - victim.due_s)
                gap_s = rng.expovariate(1.0 / mean_gap_s)
            else:
                gap_s -= free_s - start_s
    return waits_s


def forward_s(victim: Victim, begin: Begin) -> tuple[float, int]:
    """Return how long the prefill takes undisturbed on an idle device, and its boundaries."""
    cursor = begin()
    torch.cuda.synchronize()
    start_s = perf_counter()
    _run_to_the_end(victim, cursor, is_finished=False)
    return perf_counter() - start_s, cursor.num_boundaries


def uncut_forward_s(victim: Victim) -> float:
    """Return how long it takes without boundaries and without a cursor."""
    torch.cuda.synchronize()
    start_s = perf_counter()
    victim.run_uncut()
    torch.cuda.synchronize()
    return perf_counter() - start_s


def _run_to_the_end(victim: Victim, cursor: Cursor[torch.Tensor], *, is_finished: bool) -> None:
    victim.due_s = math.inf
    if not is_finished:
        cursor.resume()
    torch.cuda.synchronize()


def _device_is_free_s() -> float:
    """Return when the device has finished all that was launched; waits by asking."""
    event = torch.cuda.Event()
    event.record()
    while not event.query():
        pass
    return perf_counter()
