"""One run of a deployment, and what it says: attainment by class, what binds, where time went."""

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.core.stats import is_attained
from sglang_flowprefill.sim.cluster import Cluster, ClusterResult, Failure
from sglang_flowprefill.sim.costs.fitted import predictor_of
from sglang_flowprefill.sim.deployment import ServerSettings, System, Worker
from sglang_flowprefill.sim.instances.decoding import DecodeInstance
from sglang_flowprefill.sim.records import Arrival, DecodeWork
from sglang_flowprefill.sim.routers import ROUTERS
from sglang_flowprefill.sim.workload import Workload

_DEFAULTS = ServerSettings()


@dataclass(frozen=True, slots=True)
class Deployment:
    """What serves.

    Attributes:
        worker: Hardware of an instance.
        system: What runs there.
        num_instances: How many of them.
        settings: Of this package's server.
        router: By name.
        num_decode_instances: Decode servers of a disaggregated deployment, with the same hardware;
            None for prefill and decode in one server.
        failure: Instances that end on the way.
    """

    worker: Worker
    system: System
    num_instances: int = 1
    settings: ServerSettings = _DEFAULTS
    router: str = "round-robin"
    num_decode_instances: int | None = None
    failure: Failure | None = None

    @property
    def num_gpus(self) -> int:
        """GPUs of all instances."""
        return self.worker.num_gpus * (self.num_instances + (self.num_decode_instances or 0))


@dataclass(frozen=True, slots=True)
class Row:
    """One request as it was served; the names are those of the bench's rows.

    Attributes:
        index: Position in the workload.
        slo_class: Its class.
        num_input_tokens: Prompt length.
        num_output_tokens: Tokens that it generated.
        slo_ttft_s: Its objective.
        scheduled_s: When it arrived.
        first_token_s: When its first token came.
        finished_s: When its last one came.
        num_preemptions: How often other work went before its unfinished prefill.
        instance: Who served it.
        slo_tpot_s: Objective of its mean time per further token; None without.
    """

    index: int
    slo_class: str
    num_input_tokens: int
    num_output_tokens: int
    slo_ttft_s: float
    scheduled_s: float
    first_token_s: float
    finished_s: float
    num_preemptions: int
    instance: int
    slo_tpot_s: float | None = None

    @property
    def ttft_s(self) -> float:
        """Arrival to first token."""
        return self.first_token_s - self.scheduled_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None with one token."""
        if self.num_output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.num_output_tokens - 1)

    @property
    def has_met_ttft(self) -> bool:
        """Whether its first token came in time."""
        return is_attained(self.ttft_s, self.slo_ttft_s)

    @property
    def has_met_tpot(self) -> bool:
        """Whether its further tokens did."""
        tpot_s = self.tpot_s
        return tpot_s is None or self.slo_tpot_s is None or tpot_s <= self.slo_tpot_s

    @property
    def is_met(self) -> bool:
        """Whether it met all its objectives."""
        return self.has_met_ttft and self.has_met_tpot


@dataclass(frozen=True, slots=True)
class Latencies:
    """TTFT of a group of requests.

    Attributes:
        num_requests: How many.
        attained: Share that met all objectives.
        p50_s: Median TTFT.
        p90_s: 90th percentile.
        p99_s: 99th percentile.
        max_s: The slowest.
    """

    num_requests: int
    attained: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Latencies":
        """Summarise rows, at least one."""
        ttfts_s = sorted(row.ttft_s for row in rows)
        return cls(
            len(rows),
            sum(row.is_met for row in rows) / len(rows),
            percentile(ttfts_s, 0.5),
            percentile(ttfts_s, 0.9),
            percentile(ttfts_s, 0.99),
            ttfts_s[-1],
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What one run says.

    Attributes:
        rows: In order of arrival.
        rate_per_s: Offered rate.
        blocking_s: Seconds from an event to the boundary, of every yield.
        busy_share: Mean share of the time in which a device ran something.
        decode_busy_share: The same of decode servers; None without.
        kv_share: Most of its KV slots that an instance ever used; None with any number.
    """

    rows: Sequence[Row]
    rate_per_s: float
    blocking_s: Sequence[float] = ()
    busy_share: float = 0.0
    decode_busy_share: float | None = None
    kv_share: float | None = None

    @property
    def attained(self) -> float:
        """Share of requests that met all objectives."""
        return sum(row.is_met for row in self.rows) / len(self.rows)

    @property
    def classes(self) -> Mapping[str, Latencies]:
        """By class, the tightest objective first."""
        groups: dict[str, list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: (row.slo_ttft_s, row.slo_class)):
            groups.setdefault(row.slo_class, []).append(row)
        return {name: Latencies.of(rows) for name, rows in groups.items()}

    @property
    def worst_class(self) -> tuple[str, Latencies]:
        """The class with the lowest attainment, which the overall share can hide."""
        return min(self.classes.items(), key=lambda item: item[1].attained)

    @property
    def binding(self) -> str:
        """Which objective most misses are of, and what is scarce."""
        late = [row for row in self.rows if not row.has_met_ttft]
        slow = [row for row in self.rows if not row.has_met_tpot]
        parts = []
        if len(late) >= len(slow) and late:
            parts.append(_most_of("TTFT", late))
        elif slow:
            parts.append(_most_of("TPOT", slow))
        else:
            parts.append("no objective is missed")
        parts.append(f"devices busy {self.busy_share:.0%}")
        if self.decode_busy_share is not None:
            parts.append(f"decode busy {self.decode_busy_share:.0%}")
        if self.kv_share is not None:
            parts.append(f"KV at most {self.kv_share:.0%} used")
        return ", ".join(parts)


def _most_of(objective: str, rows: Sequence[Row]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.slo_class] = counts.get(row.slo_class, 0) + 1
    name = max(counts, key=lambda name: counts[name])
    return f"{objective} of {name} ({counts[name] / len(rows):.0%} of {len(rows)} misses)"


def percentile(ascending: Sequence[float], fraction: float) -> float:
    """Return the nearest-rank percentile of ascending values.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    rank = math.ceil(round(fraction * len(ascending), 9))
    return ascending[max(1, rank) - 1]


def serve(
    deployment: Deployment,
    arrivals: Sequence[Arrival],
    rate_per_s: float,
    allowed_misses: float = math.inf,
) -> Run | None:
    """Run a deployment.

    Args:
        deployment: What serves.
        arrivals: In order of arrival.
        rate_per_s: Their rate, for the result.
        allowed_misses: Give up once more requests than this have missed an objective.

    Returns:
        None if it was given up.
    """
    worker = deployment.worker
    predictor = predictor_of(worker.cost)
    arrivals = [_with_grown_slo(arrival, predictor) for arrival in arrivals]
    make = deployment.system.make(worker, deployment.settings)
    is_split = deployment.num_decode_instances is not None
    sent = [_until_first_token(arrival) for arrival in arrivals] if is_split else arrivals
    cluster = Cluster(
        [make() for _ in range(deployment.num_instances)],
        ROUTERS[deployment.router](predictor),
        predictor,
        deployment.failure,
    )
    default_tpot_s = deployment.settings.tpot_slo_s
    with _without_collector():
        result = cluster.run(sent, allowed_misses)
    if result.was_given_up:
        return None
    ends_s = {request_id: o.last_token_s for request_id, o in result.outcomes.items()}
    decode_busy_share = None
    if is_split:
        ends_s, decode_busy_share = _decode(deployment, arrivals, result)
    rows = [_row(arrival, result, ends_s, default_tpot_s) for arrival in arrivals]
    if sum(not row.is_met for row in rows) > allowed_misses:
        return None
    return Run(
        rows,
        rate_per_s,
        result.blocking_s,
        result.busy_share,
        decode_busy_share,
        None if worker.num_kv_tokens is None else result.max_kv_tokens / worker.num_kv_tokens,
    )


def attempt(
    deployment: Deployment,
    workload: Workload,
    rate_per_s: float,
    num_requests: int,
    *,
    goal: float = 0.0,
    seed: int = 0,
) -> Run | None:
    """Offer a workload at a rate; return None as soon as the goal cannot be met any more."""
    arrivals = workload.arrivals(rate_per_s, num_requests, seed)
    # Rounded first: (1 - 0.9) * 1000 is 99.99999999999997 in binary.
    allowed = math.floor(round((1.0 - goal) * num_requests, 6)) if goal else math.inf
    return serve(deployment, arrivals, rate_per_s, allowed)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python from looking for cycles meanwhile: a run makes many objects and no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _with_grown_slo(arrival: Arrival, predictor: PrefillCost) -> Arrival:
    """Return it with an objective that has grown with its prompt, if its class asks for that."""
    request = arrival.request
    if not request.slo.predicted_factor:
        return arrival
    slo = request.slo.grown(predictor.predict_s((request,)))
    return replace(arrival, request=replace(request, slo=slo))


def _until_first_token(arrival: Arrival) -> Arrival:
    return Arrival(arrival.request, 1, prefix=arrival.prefix)


def _decode(
    deployment: Deployment, arrivals: Sequence[Arrival], result: ClusterResult
) -> tuple[dict[str, float], float]:
    """Have decode servers generate what follows first tokens; return the ends, and how busy."""
    worker, num_instances = deployment.worker, deployment.num_decode_instances
    assert num_instances is not None, "the deployment is disaggregated"
    ends_s = {request_id: o.first_token_s for request_id, o in result.outcomes.items()}
    works = []
    for arrival in arrivals:
        if arrival.num_output_tokens == 1:
            continue
        request = arrival.request
        num_prompt = request.num_uncached_tokens + request.num_cached_tokens
        transfer_s = num_prompt * worker.kv_bytes_per_token / worker.link_bytes_per_s
        works.append(
            DecodeWork(
                request.request_id,
                ends_s[request.request_id] + transfer_s,
                num_prompt,
                arrival.num_output_tokens - 1,
                arrival.num_kv_tokens,
            )
        )
    instances = [DecodeInstance(worker.cost, worker.num_kv_tokens) for _ in range(num_instances)]
    for number, work in enumerate(sorted(works, key=lambda w: (w.come_s, w.request_id))):
        instances[number % num_instances].add(work)
    for instance in instances:
        for decoded in instance.finish():
            ends_s[decoded.work.request_id] = decoded.last_token_s
    busy_s = sum(instance.busy_s for instance in instances)
    span_s = max(ends_s.values()) - arrivals[0].request.arrival_s
    return ends_s, busy_s / (span_s * num_instances)


def _row(
    arrival: Arrival, result: ClusterResult, ends_s: Mapping[str, float], default_tpot_s: float
) -> Row:
    request = arrival.request
    outcome = result.outcomes[request.request_id]
    slo = request.slo
    return Row(
        index=int(request.request_id),
        slo_class=slo.class_name,
        num_input_tokens=request.num_uncached_tokens + request.num_cached_tokens,
        num_output_tokens=arrival.num_output_tokens,
        slo_ttft_s=slo.ttft_s,
        scheduled_s=request.arrival_s,
        first_token_s=outcome.first_token_s,
        finished_s=ends_s[request.request_id],
        num_preemptions=outcome.num_preemptions,
        instance=result.instance_of[request.request_id],
        slo_tpot_s=slo.tpot_s if slo.tpot_s is not None else default_tpot_s,
    )
