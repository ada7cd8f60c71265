"""``python -m bench.decision_cost``: how long one scheduling round takes, by length of the queue.

Calls ``PrefillDecider.decide`` on made-up queues; no server, no model. Three columns:

* *goes on*: an event came, and the prefill under way keeps the machine. Nearly every round.
* *starts*: a batch is started, with as many passengers as the token budget takes.
* *first round*: the queue has never been seen before. Each request pays this once in its life,
  when its prefill is first predicted.

Time is that of the processor, and the smallest of several repeats counts: other processes only
ever add to it.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from sglang_flowprefill.core import (
    POLICIES,
    PrefillBatch,
    PrefillCost,
    PrefillDecider,
    PrefillRequest,
    ResumeBatch,
    RoundView,
    Slo,
    StartBatch,
    make_policy,
)
from sglang_flowprefill.core.batching import BatchLimits

QUEUE_LENGTHS = (10, 100, 1000, 10000)
NOW_S = 1000.0

_COST = PrefillCost(base_s=0.01, per_token_s=1e-4, per_attention_pair_s=1e-8)
_LIMITS = BatchLimits(max_tokens=2048)
# Objective and longest prompt of four classes: chat to documents.
_CLASSES = ((2.5, 3300), (5.0, 800), (40.0, 15000), (60.0, 10000))
_NUM_SUSPENDED = 8


@dataclass(frozen=True, slots=True)
class DecisionCost:
    """Seconds of one round over a queue of this length.

    Attributes:
        num_waiting: Length of the queue.
        goes_on_s: The current prefill keeps the machine.
        starts_s: A batch with passengers is started.
        first_round_s: Nothing of the queue has been predicted before.
    """

    num_waiting: int
    goes_on_s: float
    starts_s: float
    first_round_s: float


def make_queue(num_waiting: int, seed: int = 0) -> list[PrefillRequest]:
    """Return a queue that filled up within two seconds, in order of arrival."""
    rng = random.Random(seed)
    queue = []
    for index in range(num_waiting):
        ttft_s, max_tokens = rng.choice(_CLASSES)
        arrival_s = NOW_S - 2.0 * (1.0 - index / num_waiting)
        num_tokens = rng.randint(1, max_tokens)
        queue.append(PrefillRequest(str(index), arrival_s, Slo(ttft_s), num_tokens))
    return queue


def measure(
    policy_name: str,
    num_waiting: int,
    num_repeats: int,
    clock: Callable[[], float] = time.thread_time,
) -> DecisionCost:
    """Time the rounds of one policy over one queue."""
    queue = make_queue(num_waiting)
    urgent = PrefillRequest("urgent", NOW_S, Slo(0.4), 16)
    current = _started(0, PrefillRequest("current", NOW_S - 5.0, Slo(5.1), 100))
    suspended = [
        _started(i, PrefillRequest(f"held {i}", NOW_S, Slo(60.0), 30000))
        for i in range(1, _NUM_SUSPENDED)
    ]
    goes_on = RoundView(queue, [current, *suspended], current)
    starts = RoundView([*queue, urgent], suspended)

    def once(scheduler: PrefillDecider, view: RoundView) -> float:
        start_s = clock()
        scheduler.decide(view, NOW_S)
        return clock() - start_s

    # A gain margin that no batch has left: the current prefill goes on under every policy.
    keeping = _scheduler(policy_name, min_preemption_gain_s=1e6)
    starting = _scheduler(policy_name)
    assert isinstance(keeping.decide(goes_on, NOW_S), ResumeBatch)
    assert isinstance(starting.decide(starts, NOW_S), StartBatch | ResumeBatch)
    repeats = range(num_repeats)
    return DecisionCost(
        num_waiting,
        goes_on_s=min(once(keeping, goes_on) for _ in repeats),
        starts_s=min(once(starting, starts) for _ in repeats),
        first_round_s=min(once(_scheduler(policy_name), goes_on) for _ in repeats),
    )


def as_table(policy_name: str, costs: Sequence[DecisionCost]) -> Table:
    """Return the measurements as a table in milliseconds."""
    table = Table(title=f"One scheduling round, policy {policy_name}, milliseconds")
    for heading in ("waiting", "goes on", "starts", "first round"):
        table.add_column(heading, justify="right")
    for cost in costs:
        seconds = (cost.goes_on_s, cost.starts_s, cost.first_round_s)
        table.add_row(str(cost.num_waiting), *(f"{s * 1e3:.3f}" for s in seconds))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.decision_cost", description=__doc__)
    parser.add_argument("--policy", choices=list(POLICIES), default="s-edf")
    parser.add_argument("--waiting", type=int, nargs="+", default=list(QUEUE_LENGTHS))
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args(arguments)
    costs = [measure(given.policy, n, given.repeats) for n in given.waiting]
    Console().print(as_table(given.policy, costs))


def _started(batch_id: int, request: PrefillRequest) -> PrefillBatch:
    return PrefillBatch(batch_id, (request,), _COST.predict_s((request,)))


def _scheduler(policy_name: str, min_preemption_gain_s: float = 0.0) -> PrefillDecider:
    return PrefillDecider(
        make_policy(policy_name), _COST, _LIMITS, min_preemption_gain_s=min_preemption_gain_s
    )


if __name__ == "__main__":
    main()
