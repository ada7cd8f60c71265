"""The highest rate that a deployment sustains, with a band; what it needs for a rate.

Goodput is the highest offered rate at which a share of the requests, the goal, meets all its
objectives. The band holds what the answer leaves open: costs a tenth lower and higher, and three
patterns of arrivals.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from sglang_flowprefill.sim.costs.fitted import predictor_of
from sglang_flowprefill.sim.study.serving import Deployment, Run, attempt
from sglang_flowprefill.sim.workload import Workload

COST_FACTORS = (0.9, 1.0, 1.1)
SEEDS = (0, 1, 2)
RESOLUTION = 0.02
_MAX_STEPS = 40
_MAX_INSTANCES = 100_000


@dataclass(frozen=True, slots=True)
class MaxRate:
    """The highest sustained rate.

    Attributes:
        rate_per_s: Highest rate that passed; 0 if none did.
        failed_per_s: Lowest that failed.
        run: At the highest that passed; None if none did.
    """

    rate_per_s: float
    failed_per_s: float
    run: Run | None


@dataclass(frozen=True, slots=True)
class Band:
    """A maximum rate and how far it may be off.

    Attributes:
        nominal: With the costs as they are and the trace's own arrivals.
        least_per_s: Of all variations.
        most_per_s: Of all variations.
        variations: Rate by what was varied.
    """

    nominal: MaxRate
    least_per_s: float
    most_per_s: float
    variations: dict[str, float]


@dataclass(frozen=True, slots=True)
class RunLength:
    """How long a run is: too short a one ends before its queue has grown.

    Attributes:
        per_instance: Requests for each instance, at least.
        least_s: Seconds of arrivals, at least.
        most_requests: Requests of a run at most; of large clusters it is shorter therefore.
    """

    per_instance: int = 500
    least_s: float = 120.0
    most_requests: int = 50_000

    def num_requests(self, rate_per_s: float, num_instances: int) -> int:
        """Return how many requests a run at a rate has."""
        wanted = max(self.per_instance * num_instances, math.ceil(self.least_s * rate_per_s))
        return min(wanted, max(self.most_requests, 20 * num_instances))


def max_rate(
    deployment: Deployment,
    workload: Workload,
    *,
    goal: float,
    length: RunLength,
    seed: int = 0,
    start_per_s: float | None = None,
) -> MaxRate:
    """Search the highest rate at which the goal is met.

    Args:
        deployment: What serves.
        workload: What is offered.
        goal: Share of requests that must meet their objectives.
        length: Of a run.
        seed: Of arrivals.
        start_per_s: A guess.
    """
    probe = start_per_s or _guess_per_s(deployment, workload)
    passed, failed, best = 0.0, math.inf, None
    step = 1.6
    for _ in range(_MAX_STEPS):
        num_requests = length.num_requests(probe, deployment.num_instances)
        run = attempt(deployment, workload, probe, num_requests, goal=goal, seed=seed)
        if run is None:
            failed = probe
        else:
            passed, best = probe, run
        if passed and failed <= passed * (1.0 + RESOLUTION):
            break
        if passed and failed < math.inf:
            probe = math.sqrt(passed * failed)
        else:
            probe = passed * step if passed else failed / step
            step = min(step * step, 16.0)
        if not passed and probe < 1e-3 * workload.rate_per_s:
            break
    return MaxRate(passed, failed, best)


def max_rate_with_band(
    deployment: Deployment,
    workload: Workload,
    *,
    goal: float,
    length: RunLength,
    on_search: Callable[[str], None] = lambda _what: None,
) -> Band:
    """Search the highest rate as it is, with other costs, and with other arrivals."""
    on_search("costs as they are")
    nominal = max_rate(deployment, workload, goal=goal, length=length)
    rates = {"costs as they are, the trace's arrivals": nominal.rate_per_s}
    start = nominal.rate_per_s or None

    def search(what: str, varied: Deployment, seed: int, guess: float | None) -> None:
        on_search(what)
        found = max_rate(
            varied,
            workload,
            goal=goal,
            length=length,
            seed=seed,
            start_per_s=guess,
        )
        rates[what] = found.rate_per_s

    for factor in COST_FACTORS:
        if factor != 1.0:
            varied = replace(deployment, worker=deployment.worker.scaled(factor))
            search(f"costs x {factor:g}", varied, 0, None if start is None else start / factor)
    for seed in SEEDS[1:]:
        search(f"arrivals of seed {seed}", deployment, seed, start)
    return Band(nominal, min(rates.values()), max(rates.values()), rates)


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a rate needs.

    Attributes:
        goal: Share of requests that must meet their objectives.
        num_instances: The least; None if not even very many do.
        num_gpus: Of them.
        attained: Share that met their objectives with so many.
    """

    goal: float
    num_instances: int | None
    num_gpus: int | None
    attained: float | None


def min_instances(
    deployment: Deployment,
    workload: Workload,
    rate_per_s: float,
    *,
    goal: float,
    length: RunLength,
    max_per_instance: float,
) -> Sizing:
    """Search the least number of instances that meets a goal at a rate.

    Decode servers, where there are any, are as many per prefill server as in the deployment.

    Args:
        deployment: What serves; its number of instances does not matter.
        workload: What is offered.
        rate_per_s: At this rate.
        goal: Share of requests that must meet their objectives.
        length: Of a run.
        max_per_instance: Highest rate that one instance sustains, as a start.
    """
    found: dict[int, Run | None] = {}

    def passes(num_instances: int) -> bool:
        if num_instances not in found:
            found[num_instances] = attempt(
                with_instances(deployment, num_instances),
                workload,
                rate_per_s,
                length.num_requests(rate_per_s, num_instances),
                goal=goal,
            )
        return found[num_instances] is not None

    high = max(math.ceil(rate_per_s / max_per_instance), 1) if max_per_instance else 1
    low = 0
    while not passes(high):
        low, high = high, max(math.ceil(high * 1.25), high + 1)
        if high > _MAX_INSTANCES or (len(found) > _MAX_STEPS):
            return Sizing(goal, None, None, None)
    while low == 0 and high > 1:
        below = min(math.floor(high / 1.25), high - 1)
        if passes(below):
            high = below
        else:
            low = below
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle
    run = found[high]
    assert run is not None, "it passed"
    return Sizing(goal, high, with_instances(deployment, high).num_gpus, run.attained)


def with_instances(deployment: Deployment, num_instances: int) -> Deployment:
    """Return a deployment of another size, with decode servers in proportion."""
    num_decode = deployment.num_decode_instances
    if num_decode is not None:
        num_decode = math.ceil(num_decode * num_instances / deployment.num_instances)
    return replace(deployment, num_instances=num_instances, num_decode_instances=num_decode)


def _guess_per_s(deployment: Deployment, workload: Workload) -> float:
    """Return the rate at which prompts one by one would fill the machines."""
    cost = predictor_of(deployment.worker.cost)
    requests = [arrival.request for arrival in workload.arrivals(1.0, len(workload.requests))]
    mean_s = sum(cost.predict_s((request,)) for request in requests) / len(requests)
    return deployment.num_instances / mean_s
