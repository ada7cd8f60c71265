"""How far a device has come with what the host has launched.

A *mark* is put behind everything launched so far and is done once all of that has finished. A
CPU finishes an operator before the call returns and needs no marks; a GPU runs behind the host.
"""

import os
import time
from typing import Any, Protocol

import torch

from sglang_flowprefill.errors import UnsupportedSGLangError


class Mark(Protocol):
    """A point in the order in which a device carries out what was launched."""

    def is_done(self) -> bool:
        """Tell whether everything launched before the mark has finished. Never blocks.

        Raises:
            Exception: Whatever the device reports; an asynchronous failure surfaces here.
        """

    def wait(self, timeout_s: float) -> None:
        """Let about so many seconds pass, or fewer if the mark is done before.

        0: let others run that can, no longer.
        """


class Device(Protocol):
    """What runs the operators.

    Attributes:
        is_synchronous: True if an operator has finished when its call returns. Such a device is
            never asked for a mark.
    """

    is_synchronous: bool

    def record(self) -> Mark:
        """Return a mark behind everything launched so far."""

    def reuse(self, mark: Mark) -> None:
        """Take back a mark that is done and that nobody will ask again."""


class _DoneMark:
    def is_done(self) -> bool:
        return True

    def wait(self, timeout_s: float) -> None:
        """Return at once."""


class SynchronousDevice:
    """A CPU: nothing is ever in flight."""

    is_synchronous = True

    def record(self) -> Mark:
        """Return a mark that is done."""
        return _DoneMark()

    def reuse(self, mark: Mark) -> None:
        """Keep nothing."""


class _CudaMark:
    """A CUDA event without timing, recorded again and again."""

    def __init__(self) -> None:
        self._event: Any = torch.cuda.Event()

    def record(self) -> None:
        self._event.record()

    def is_done(self) -> bool:
        return bool(self._event.query())

    def wait(self, timeout_s: float) -> None:
        """Sleep: torch waits for an event without a timeout, and the caller has more to watch."""
        if timeout_s > 0.0:
            time.sleep(timeout_s)
        else:
            os.sched_yield()  # a sleep of 0 takes as long as one of 20 us


class CudaDevice:
    """The current CUDA stream of the calling thread. Measured on an H200, without SGLang.

    Work on other streams is seen as far as the current one waits for it.
    """

    is_synchronous = False

    def __init__(self) -> None:
        self._spare: list[_CudaMark] = []

    def record(self) -> Mark:
        """Record an event on the current stream; a spare one if there is any."""
        mark = self._spare.pop() if self._spare else _CudaMark()
        mark.record()
        return mark

    def reuse(self, mark: Mark) -> None:
        """Keep the event for a later ``record``."""
        assert isinstance(mark, _CudaMark), "a mark goes back to the device that made it"
        self._spare.append(mark)


def device_named(name: str) -> Device:
    """Return the device that torch calls ``cpu``, ``cuda`` or ``cuda:<index>``.

    Raises:
        UnsupportedSGLangError: Nothing is known about how this device runs behind the host.
    """
    kind = name.partition(":")[0]
    if kind == "cpu":
        return SynchronousDevice()
    if kind == "cuda":
        return CudaDevice()
    raise UnsupportedSGLangError(
        f"FlowPrefill runs on cpu and cuda; how far {kind} runs behind the host is not known"
    )
