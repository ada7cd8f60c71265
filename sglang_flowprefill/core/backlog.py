"""What stands before a new request in the policy's order, kept while a burst is judged.

Waiting requests are counted as if every batch were full: the launch overhead is shared by as many
tokens as a batch may have. The other way round nobody would be admitted.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

from sglang_flowprefill.core.decider import PrefillDecider
from sglang_flowprefill.core.policy import PolicyKey
from sglang_flowprefill.core.request import PrefillRequest
from sglang_flowprefill.core.view import RoundView


class Backlog:
    """The work before each of some newcomers.

    Judging m newcomers against n requests that wait already takes O((n + m) log m): whoever waits
    is entered once, at the first newcomer in the order that it goes before, and sums over the
    order come from a binary indexed tree.

    Args:
        decider: Its policy orders, its cost predicts.
        view: The world without the newcomers.
        newcomers: Those that will be asked about.
        now_s: Current time in seconds.

    Attributes:
        num_waiting: Requests that wait, the newcomers that were added included.
    """

    def __init__(
        self,
        decider: PrefillDecider,
        view: RoundView,
        newcomers: Sequence[PrefillRequest],
        now_s: float,
    ) -> None:
        self._decider = decider
        self._now_s = now_s
        self._started = [
            (ranked.key, ranked.batch.remaining_s) for ranked in decider.ranked(view, now_s)
        ]
        self._num_started = sum(len(batch.requests) for batch in view.batches)
        key = decider.policy.key
        self._keys: list[PolicyKey] = sorted(
            key(candidate, now_s) for candidate in decider.candidates(newcomers)
        )
        self._work_s = [0.0] * (len(self._keys) + 1)
        self._num_tokens = [0] * (len(self._keys) + 1)
        self._all_work_s = 0.0
        self._all_tokens = 0
        self.num_waiting = 0
        for request, candidate in zip(view.waiting, decider.remembered(view.waiting), strict=True):
            self._enter(key(candidate, now_s), candidate.remaining_s, request)

    def own_s(self, request: PrefillRequest) -> float:
        """Predict the seconds of a request's own prefill, alone."""
        return self._decider.predict_s((request,))

    def wait_s(self, newcomer: PrefillRequest) -> float:
        """Predict how long everything takes that goes before a newcomer, if nobody else comes."""
        own_key = self._key_of(newcomer)
        started_s = sum(remaining_s for key, remaining_s in self._started if key <= own_key)
        work_s, num_tokens = 0.0, 0
        index = bisect_left(self._keys, own_key) + 1
        while index:
            work_s += self._work_s[index]
            num_tokens += self._num_tokens[index]
            index &= index - 1
        return started_s + self._batched_s(work_s, num_tokens)

    def turnover_s(self) -> float:
        """Predict how long it takes on average until one more request has been prefilled."""
        started_s = sum(remaining_s for _, remaining_s in self._started)
        work_s = started_s + self._batched_s(self._all_work_s, self._all_tokens)
        return work_s / max(self.num_waiting + self._num_started, 1)

    def add(self, request: PrefillRequest) -> None:
        """Let a request wait, as it was admitted."""
        self._enter(self._key_of(request), self.own_s(request), request)

    def _key_of(self, request: PrefillRequest) -> PolicyKey:
        (candidate,) = self._decider.candidates((request,))
        return self._decider.policy.key(candidate, self._now_s)

    def _enter(self, key: PolicyKey, alone_s: float, request: PrefillRequest) -> None:
        """Count a request for every newcomer that is not before it."""
        work_s = max(alone_s - self._decider.cost.base_s, 0.0)
        self.num_waiting += 1
        self._all_work_s += work_s
        self._all_tokens += request.num_uncached_tokens
        index = bisect_left(self._keys, key) + 1
        while index < len(self._work_s):
            self._work_s[index] += work_s
            self._num_tokens[index] += request.num_uncached_tokens
            index += index & -index

    def _batched_s(self, work_s: float, num_tokens: int) -> float:
        decider = self._decider
        num_batches = math.ceil(num_tokens / decider.limits.max_tokens)
        return work_s + decider.cost.base_s * num_batches
