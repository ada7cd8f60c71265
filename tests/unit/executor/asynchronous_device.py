"""A GPU in slow motion: what is launched runs later, in order, on a thread of its own.

It advances only when told to, so a test decides how far the host may be ahead at every point.
Nothing sleeps; the time-outs only turn a hang into a failure.
"""

import threading
from collections import deque

GUARD_S = 30.0


class AsynchronousDevice:
    """``executor.Device`` on a thread. A failed operator fails every later question, like CUDA's.

    Attributes:
        while_host_waits: Called with the mark that the host waits for. Finishes one operator
            unless a test replaces it.
        num_marks: Marks made so far.
        most_in_flight: The most operators that were launched and unfinished at once.
    """

    is_synchronous = False

    def __init__(self):
        self._changed = threading.Condition()
        self._queue = deque()
        self._num_launched = self._num_finished = 0
        self._num_permitted = 0
        self._error = None
        self._is_closed = False
        self.while_host_waits = lambda _mark: self.finish(1)
        self.num_marks = self.most_in_flight = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(GUARD_S)
        assert not self._thread.is_alive()

    # ---- the host's side ----

    def launch(self, operator):
        """Queue a function without arguments; return at once."""
        with self._changed:
            self._queue.append(operator)
            self._num_launched += 1
            self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
            self._changed.notify_all()

    def record(self):
        """Return a mark behind everything launched so far."""
        self._raise_error()
        self.num_marks += 1
        return _Mark(self, self._num_launched)

    def reuse(self, mark):
        """Refuse marks that are not done; keep nothing."""
        assert mark.is_done()

    @property
    def num_in_flight(self):
        """Operators launched and unfinished."""
        return self._num_launched - self._num_finished

    # ---- the test's side ----

    def finish(self, num_operators):
        """Let so many operators run, or as many as there are; return when they have."""
        with self._changed:
            target = self._num_finished + min(num_operators, self.num_in_flight)
            self._num_permitted = max(self._num_permitted, target)
            self._changed.notify_all()
            self._wait_for_finished(target)

    def finish_all(self):
        """Let everything launched run; return when it has, as reading a result does."""
        self.finish(self.num_in_flight)

    def run_freely(self):
        """Let operators run as they come, at their own pace."""
        with self._changed:
            self._num_permitted = float("inf")
            self._changed.notify_all()
        self.while_host_waits = self._wait_for_mark

    # ---- the device's side ----

    def _run(self):
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._is_closed or self._may_run())
                if self._is_closed:
                    return
                operator = self._queue.popleft()
                self._changed.release()
                try:
                    operator()
                except Exception as error:  # noqa: BLE001 (whatever it was, the host is told)
                    self._error = error
                finally:
                    self._changed.acquire()
                self._num_finished += 1
                self._changed.notify_all()

    def _may_run(self):
        return self._queue and self._num_finished < self._num_permitted

    def _wait_for_mark(self, mark):
        with self._changed:
            self._wait_for_finished(mark.num_launched)

    def _wait_for_finished(self, num_operators):
        is_there = self._changed.wait_for(lambda: self._num_finished >= num_operators, GUARD_S)
        assert is_there, f"the device stands at {self._num_finished} of {num_operators}"

    def _raise_error(self):
        if self._error is not None:
            raise self._error


class _Mark:
    """Done once so many operators have finished."""

    def __init__(self, device, num_launched):
        self._device = device
        self.num_launched = num_launched

    def is_done(self):
        self._device._raise_error()
        return self._device._num_finished >= self.num_launched

    def wait(self, timeout_s):
        self._device.while_host_waits(self)
