"""A decode server of a disaggregated deployment: requests come with their KV and get tokens.

All running requests get a token in each step. Between two events (somebody joins, somebody ends)
the batch is the same and a step's time grows evenly with the contexts, so that any number of steps
is one formula.
"""

import math
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from math import ceil, sqrt

from sglang_flowprefill.sim.costs.pass_cost import PassCost
from sglang_flowprefill.sim.records import Decoded, DecodeWork


class DecodeInstance:
    """One decode server.

    Args:
        cost: What steps take.
        num_kv_tokens: KV slots; who finds none waits in order of arrival. None for any number.
        max_running: Requests of a step at most.
    """

    def __init__(
        self, cost: PassCost, num_kv_tokens: int | None = None, max_running: int = 256
    ) -> None:
        self._cost = cost
        self._num_kv_tokens = num_kv_tokens
        self._max_running = max_running
        self._waiting: deque[DecodeWork] = deque()
        self._ends: list[tuple[int, int, DecodeWork, float]] = []
        self._num_steps = 0
        self._num_joined = 0
        self._num_context_tokens = 0
        self._num_kv_used = 0
        self.now_s = 0.0
        self.busy_s = 0.0
        self.decoded: list[Decoded] = []

    @property
    def num_requests(self) -> int:
        """Requests here, running or waiting."""
        return len(self._ends) + len(self._waiting)

    def add(self, work: DecodeWork) -> None:
        """Take a request whose KV has arrived; none earlier may come later.

        Raises:
            ValueError: It does not fit into the memory.
        """
        if self._num_kv_tokens is not None and work.num_kv_tokens > self._num_kv_tokens:
            raise ValueError(f"a request needs more than the {self._num_kv_tokens} KV slots")
        self.advance(work.come_s)
        self._waiting.append(work)
        self._join()

    def advance(self, until_s: float) -> None:
        """Decode up to the end of the step that is running at a time."""
        while self._ends and self.now_s < until_s:
            self._run_steps(until_s)
            self._end()
            self._join()
        if not self._ends and until_s < math.inf:
            self.now_s = max(self.now_s, until_s)

    def finish(self) -> Sequence[Decoded]:
        """Decode everything to its end."""
        self.advance(math.inf)
        return self.decoded

    def _run_steps(self, until_s: float) -> None:
        """Run up to the next end of a request, or the first step that ends after a time."""
        num_running = len(self._ends)
        step_s = self._cost.decode_s(num_running, self._num_context_tokens)
        growth_s = self._cost.decode_s(num_running, self._num_context_tokens + num_running) - step_s
        num_steps = self._ends[0][0] - self._num_steps
        if until_s < math.inf:
            num_steps = min(num_steps, _num_steps_to(until_s - self.now_s, step_s, growth_s))
        duration_s = num_steps * step_s + growth_s * num_steps * (num_steps - 1) / 2
        self.now_s += duration_s
        self.busy_s += duration_s
        self._num_steps += num_steps
        self._num_context_tokens += num_steps * num_running

    def _end(self) -> None:
        while self._ends and self._ends[0][0] <= self._num_steps:
            _, _, work, joined_s = heappop(self._ends)
            self._num_context_tokens -= work.num_prompt_tokens + 1 + work.num_tokens
            self._num_kv_used -= work.num_kv_tokens
            self.decoded.append(Decoded(work, joined_s, self.now_s))

    def _join(self) -> None:
        while self._waiting and len(self._ends) < self._max_running:
            work = self._waiting[0]
            num_kv = self._num_kv_used + work.num_kv_tokens
            if self._num_kv_tokens is not None and num_kv > self._num_kv_tokens:
                return
            self._waiting.popleft()
            self._num_kv_used = num_kv
            self._num_joined += 1
            self._num_context_tokens += work.num_prompt_tokens + 1
            end = (self._num_steps + work.num_tokens, self._num_joined, work, self.now_s)
            heappush(self._ends, end)


def _num_steps_to(seconds: float, step_s: float, growth_s: float) -> int:
    """Return the least number of steps that take as long, at least 1."""
    if step_s <= 0.0:
        return 1
    if growth_s <= 0.0:
        return max(ceil(seconds / step_s), 1)
    half = step_s - growth_s / 2
    return max(ceil((sqrt(half * half + 2 * growth_s * seconds) - half) / growth_s), 1)
