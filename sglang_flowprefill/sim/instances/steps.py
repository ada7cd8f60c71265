"""Engines that decide between forward passes only, each by its own rules.

``whole``       one prompt a pass, or several short ones up to a budget, in order of arrival: the
                prefill instances of DistServe.
``mixed``       a token budget for each step; running requests take one token each, what is left
                goes to prompts in order, any number of them partly prefilled: vLLM, Sarathi-Serve.
``one-chunk``   prefills go before decode steps, in chunks of the budget; at most one prompt is
                unfinished between two steps and nobody overtakes it: SGLang as it comes.

The order among waiting prompts is a policy of ``core/``, so that the same engine can be asked with
arrival order, with priorities by class, and with S-EDF.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from sglang_flowprefill.core import Candidate, Policy, PrefillCost
from sglang_flowprefill.core.predictor import num_attention_pairs
from sglang_flowprefill.sim.device import Device
from sglang_flowprefill.sim.kv_pool import KvPool
from sglang_flowprefill.sim.records import Arrival, FirstToken, Outcome


@dataclass(frozen=True, slots=True)
class PriorityByClass:
    """The tightest objective first, then arrival: priorities that somebody derived from classes."""

    may_preempt: bool = False
    lent_share: float = 0.0

    def key(self, candidate: Candidate, now_s: float) -> tuple[float, ...]:  # noqa: ARG002
        """Order by objective, then arrival."""
        return (candidate.ttft_slo_s, candidate.arrival_s)


@dataclass(frozen=True, slots=True)
class StepRules:
    """Rules of an engine.

    Attributes:
        kind: whole, mixed or one-chunk, as above.
        budget_tokens: Tokens of a step; ``whole`` puts a longer prompt into a step of its own.
        policy: Order among prompts that wait.
        is_order_fixed: Keys of the order do not change with time.
        max_running: Requests past their prefill at most.
    """

    kind: str
    budget_tokens: int
    policy: Policy
    is_order_fixed: bool = True
    max_running: int = 256


@dataclass(slots=True, eq=False)
class _Job:
    arrival: Arrival
    num_left: int
    num_done: int = 0
    first_token_s: float = math.inf
    last_token_s: float = math.inf
    max_gap_s: float = 0.0
    num_tokens_left: int = 0


class StepInstance:
    """One server that runs step after step.

    Args:
        rules: Its rules.
        device: What a step takes; boundaries do not matter here.
        predictor: Predicted prefill time, for orders that look at slack.
    """

    blocking_s: Sequence[float] = ()

    def __init__(self, rules: StepRules, device: Device, predictor: PrefillCost) -> None:
        self._rules = rules
        self._device = device
        self._predictor = predictor
        self._coming: deque[tuple[float, Arrival]] = deque()
        self._waiting: list[tuple[tuple[float, ...], int, _Job]] = []
        self._partial: list[_Job] = []
        self._running: list[_Job] = []
        self._num_context_tokens = 0
        self._num_added = 0
        self._kv = KvPool(device.num_kv_tokens, device.page_tokens)
        self._now_s = 0.0
        self._first_tokens: list[FirstToken] = []
        self._outcomes: list[Outcome] = []
        self.busy_s = 0.0

    @property
    def max_kv_tokens(self) -> int:
        """Most KV slots that were in use at once."""
        return self._kv.max_used

    @property
    def next_end_s(self) -> float:
        """Time before which nothing ends here."""
        if self._waiting or self._partial or self._running:
            return self._now_s
        return self._coming[0][0] if self._coming else math.inf

    def add(self, arrival: Arrival, come_s: float) -> None:
        """Let a request come."""
        capacity = self._device.num_kv_tokens
        if capacity is not None and arrival.num_kv_tokens > capacity:
            raise ValueError(f"a request needs more than the machine's {capacity} KV slots")
        self._coming.append((come_s, arrival))

    def advance(self, until_s: float) -> None:
        """Run the steps that begin before a time."""
        while True:
            if not (self._waiting or self._partial or self._running):
                if not self._coming or self._coming[0][0] >= until_s:
                    return
                self._now_s = max(self._now_s, self._coming[0][0])
            if self._now_s >= until_s:
                return
            self._take_arrivals()
            self._step()

    def take_first_tokens(self) -> Sequence[FirstToken]:
        """Return who got a first token."""
        taken, self._first_tokens = self._first_tokens, []
        return taken

    def take_outcomes(self) -> Sequence[Outcome]:
        """Return who ended."""
        taken, self._outcomes = self._outcomes, []
        return taken

    def _take_arrivals(self) -> None:
        while self._coming and self._coming[0][0] <= self._now_s:
            _, arrival = self._coming.popleft()
            job = _Job(arrival, arrival.request.num_uncached_tokens)
            self._num_added += 1
            heappush(self._waiting, (self._key(job), self._num_added, job))

    def _key(self, job: _Job) -> tuple[float, ...]:
        request = job.arrival.request
        left_s = self._predictor.total_s(
            self._predictor.per_token_s * job.num_left
            + self._predictor.per_attention_pair_s * num_attention_pairs(job.num_left, job.num_done)
        )
        candidate = Candidate(request.arrival_s, request.slo.ttft_s, left_s)
        return self._rules.policy.key(candidate, self._now_s)

    def _step(self) -> None:
        """Run one step: a prefill, a decode step, or both."""
        rules = self._rules
        num_decoding = len(self._running) if rules.kind == "mixed" else 0
        chunks = self._choose(max(rules.budget_tokens - num_decoding, 1))
        if not chunks and not self._running:
            raise AssertionError("a request that fits alone found no memory in an empty machine")
        duration_s = self._prefill_s(chunks) if chunks else 0.0
        is_decoding = bool(self._running) and (rules.kind == "mixed" or not chunks)
        if is_decoding:
            step_s = self._device.step_s(len(self._running), self._num_context_tokens)
            if chunks:  # one pass does both, and reads the weights once
                step_s = max(step_s - self._device.step_s(1, 0), 0.0)
            duration_s += step_s
        self._now_s += duration_s
        self.busy_s += duration_s
        if is_decoding:
            self._give_tokens()
        self._end_chunks(chunks)

    def _prefill_s(self, chunks: Sequence[tuple[_Job, int]]) -> float:
        num_tokens = sum(num for _, num in chunks)
        pairs = sum(
            num_attention_pairs(num, job.num_done + job.arrival.request.num_cached_tokens)
            for job, num in chunks
        )
        return self._device.cost.prefill(num_tokens, pairs, len(chunks)).total_s

    def _choose(self, budget: int) -> list[tuple[_Job, int]]:
        """Return who is prefilled in the next step, and how many tokens of each."""
        if not self._rules.is_order_fixed:
            self._waiting = [(self._key(job), number, job) for _, number, job in self._waiting]
            heapify(self._waiting)
        chosen: list[tuple[_Job, int]] = []
        is_whole = self._rules.kind == "whole"
        partials = self._ordered_partials()
        while budget > 0:
            if partials and self._goes_first(partials[0]):
                job = partials.pop(0)
            elif self._waiting and self._may_start(self._waiting[0][2], chosen, budget):
                job = heappop(self._waiting)[2]
                self._partial.append(job)
            elif partials:
                job = partials.pop(0)
            else:
                break
            num_tokens = job.num_left if is_whole else min(job.num_left, budget)
            chosen.append((job, num_tokens))
            budget -= num_tokens
        return chosen

    def _ordered_partials(self) -> list[_Job]:
        is_reordered = self._rules.kind == "mixed" and not self._rules.is_order_fixed
        return sorted(self._partial, key=self._key) if is_reordered else list(self._partial)

    def _goes_first(self, job: _Job) -> bool:
        """Tell whether a partly prefilled prompt goes before those that wait.

        It always does, but where chunks of many prompts may alternate by their urgency.
        """
        if self._rules.kind != "mixed" or self._rules.is_order_fixed or not self._waiting:
            return True
        return self._key(job) <= self._waiting[0][0]

    def _may_start(self, job: _Job, chosen: Sequence[tuple[_Job, int]], budget: int) -> bool:
        """Tell whether the first that waits may begin, and take its memory if so."""
        if len(self._running) + len(self._partial) >= self._rules.max_running:
            return False
        if self._rules.kind == "whole" and chosen and job.num_left > budget:
            return False
        return self._has_memory(job)

    def _has_memory(self, job: _Job) -> bool:
        """Take the memory of a request if there is any; what is cached of it is not computed."""
        request_id, prefix = job.arrival.request.request_id, job.arrival.prefix
        num_prompt = job.arrival.request.num_uncached_tokens
        num_cached = min(self._kv.lock(request_id, prefix), num_prompt - 1)
        num_more = max(job.arrival.num_kv_tokens - self._kv.held_by(request_id), 0)
        if self._kv.num_missing(num_more):
            self._kv.unlock(request_id)
            return False
        self._kv.take(request_id, num_more)
        job.num_done, job.num_left = num_cached, num_prompt - num_cached
        return True

    def _end_chunks(self, chunks: Sequence[tuple[_Job, int]]) -> None:
        for job, num_tokens in chunks:
            job.num_done += num_tokens
            job.num_left -= num_tokens
            if job.num_left:
                continue
            self._partial.remove(job)
            self._kv.keep(job.arrival.request.request_id, job.arrival.prefix)
            job.first_token_s = job.last_token_s = self._now_s
            job.num_tokens_left = job.arrival.num_output_tokens - 1
            self._first_tokens.append(FirstToken(self._now_s, job.arrival.request.request_id))
            if job.num_tokens_left:
                self._running.append(job)
                request = job.arrival.request
                self._num_context_tokens += request.num_uncached_tokens + 1
            else:
                self._end(job)

    def _give_tokens(self) -> None:
        self._num_context_tokens += len(self._running)
        has_ended = False
        for job in self._running:
            job.max_gap_s = max(job.max_gap_s, self._now_s - job.last_token_s)
            job.last_token_s = self._now_s
            job.num_tokens_left -= 1
            if not job.num_tokens_left:
                has_ended = True
                request = job.arrival.request
                self._num_context_tokens -= (
                    request.num_uncached_tokens + job.arrival.num_output_tokens
                )
                self._end(job)
        if has_ended:
            self._running = [job for job in self._running if job.num_tokens_left]

    def _end(self, job: _Job) -> None:
        self._kv.give_back(job.arrival.request.request_id)
        self._outcomes.append(
            Outcome(
                job.arrival.request,
                job.first_token_s,
                job.last_token_s,
                num_preemptions=0,
                max_gap_s=job.max_gap_s,
            )
        )
