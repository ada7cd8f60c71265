"""What a goodput search found, as it is kept in its result file, and read back from there.

The file is written anew after each probe, so that a search that was interrupted goes on from what
it knows. Everything else, from the table to the report, is computed from it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from bench.comparison.report import write_json
from bench.errors import UsageError
from bench.replaying.metrics import attainment, rows_by_class
from bench.replaying.row import RequestRow

SCHEMA_VERSION = 1
DEFAULT_RESOLUTION = 0.025


class Load(NamedTuple):
    """What a probe offers: two with the same one replay the same requests at the same times.

    Attributes:
        rate_per_s: Offered rate.
        seed: Of workload and prompts.
        slo_scale: Factor on every objective of the workload's table.
    """

    rate_per_s: float
    seed: int
    slo_scale: float


@dataclass(frozen=True)
class Probe:
    """One replay at one rate.

    Attributes:
        rate_per_s: Offered rate.
        seed: Of workload and prompts.
        slo_scale: Factor on every objective of the workload's table.
        num_requests: Of the workload at this rate.
        is_abandoned: The replay was ended as soon as the goal was out of reach. ``rows`` are
            then only those requests that had ended; the others count as neither.
        rows: One per request.
    """

    rate_per_s: float
    seed: int
    slo_scale: float
    num_requests: int
    is_abandoned: bool
    rows: tuple[RequestRow, ...]

    @property
    def load(self) -> Load:
        """What was offered."""
        return Load(self.rate_per_s, self.seed, self.slo_scale)

    @cached_property
    def attained(self) -> float:
        """Share that met its objective; of an abandoned probe the most that it could be."""
        num_missed = round((1 - attainment(self.rows)) * len(self.rows)) if self.rows else 0
        return 1 - num_missed / self.num_requests

    @cached_property
    def class_attained(self) -> dict[str, float]:
        """The same by class, tightest objective first; empty for an abandoned probe."""
        if self.is_abandoned:
            return {}
        return {name: attainment(rows) for name, rows in rows_by_class(self.rows).items()}

    def meets(self, goal: float, *, every_class: bool = False) -> bool | None:
        """Return whether the goal was met, by all requests together or by each class.

        None for an abandoned probe that says nothing of this goal.
        """
        if self.is_abandoned:
            return False if self.attained < goal else None
        shares = self.class_attained.values() if every_class else [self.attained]
        return min(shares) >= goal

    @property
    def worst_class(self) -> tuple[str, float] | None:
        """The class with the least share, and that share; None for an abandoned probe."""
        shares = self.class_attained
        return min(shares.items(), key=lambda item: item[1]) if shares else None


@dataclass(frozen=True, slots=True)
class Search:
    """The highest passing rate of one system, for one seed, objective scale and goal.

    Attributes:
        seed: Of workload and prompts.
        slo_scale: Factor on every objective.
        goal: Share that must meet its objective.
        max_rate_per_s: Highest rate offered that met the goal; 0 where none did.
        failed_rate_per_s: Lowest rate offered that did not; the truth lies between.
        every_class: Whether each class had to meet the goal, not all requests together.
    """

    seed: int
    slo_scale: float
    goal: float
    max_rate_per_s: float
    failed_rate_per_s: float
    every_class: bool = False


@dataclass(slots=True)
class SystemResult:
    """Everything that one system did.

    Attributes:
        name: Of the system.
        server: How it was started and what it says of itself (``ServerDescription`` as JSON).
        probes: In the order measured.
        searches: Those that came to an end.
        solo: Prompts sent one at a time to the idle server: tokens, and seconds to the first
            token. Ascending; empty if not measured.
    """

    name: str
    server: dict[str, Any] = field(default_factory=dict)
    probes: list[Probe] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    solo: list[tuple[int, float]] = field(default_factory=list)

    def searches_for(
        self, slo_scale: float, goal: float, *, every_class: bool = False
    ) -> list[Search]:
        """Return the searches of one kind, by seed."""
        kind = (slo_scale, goal, every_class)
        found = [s for s in self.searches if (s.slo_scale, s.goal, s.every_class) == kind]
        return sorted(found, key=lambda search: search.seed)

    def max_rates(self, slo_scale: float, goal: float, *, every_class: bool = False) -> list[float]:
        """Return the result of each seed, by seed."""
        found = self.searches_for(slo_scale, goal, every_class=every_class)
        return [search.max_rate_per_s for search in found]

    def best_probe(self, search: Search) -> Probe | None:
        """Return the probe at a search's result."""
        return self.probe_of(Load(search.max_rate_per_s, search.seed, search.slo_scale))

    def probe_of(self, load: Load) -> Probe | None:
        """Return the whole replay of a load, None where there is none."""
        whole = (probe for probe in self.probes if not probe.is_abandoned)
        return next((probe for probe in whole if probe.load == load), None)

    def limit_per_s(self, prompt_lengths: Sequence[int]) -> float | None:
        """Return the rate at which the unloaded prefills of such prompts would fill all time.

        Lengths that were not measured are taken from those around them. None without ``solo``.
        """
        if not self.solo:
            return None
        lengths, seconds = zip(*self.solo, strict=True)
        return len(prompt_lengths) / float(np.interp(prompt_lengths, lengths, seconds).sum())

    @property
    def physical_limit_per_s(self) -> float | None:
        """The median limit of the requests that its searches ended with."""
        best = [probe for search in self.searches if (probe := self.best_probe(search))]
        lengths = ([row.num_input_tokens for row in probe.rows] for probe in best)
        limits = [limit for some in lengths if (limit := self.limit_per_s(some))]
        return median(limits) if limits else None


@dataclass(slots=True)
class GoodputResult:
    """A whole result file.

    Attributes:
        head: Schema version, title, provenance, config, seed (``report.result_head``).
        origin: Of the workload, with its caveat.
        length_scale: Factor on the lengths of the trace.
        class_slos_s: TTFT objective of every class at objective scale 1, tightest first.
        systems: By name, in the order measured.
    """

    head: dict[str, Any]
    origin: str
    length_scale: float
    class_slos_s: dict[str, float]
    systems: dict[str, SystemResult] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What was measured, how it was scaled, and on what."""
        return str(self.head["title"])

    @property
    def measured_at(self) -> str:
        """When it was begun, to the minute; empty where that is not known."""
        return str(self.head.get("provenance", {}).get("measured_at", ""))[:16]

    @property
    def resolution(self) -> float:
        """Share that the rates which passed and failed are apart at the end of a search."""
        return float(self.head.get("config", {}).get("resolution", DEFAULT_RESOLUTION))

    def slo_scales(self) -> list[float]:
        """Return the objective scales that were searched, ascending."""
        return sorted({s.slo_scale for system in self.systems.values() for s in system.searches})

    def kinds(self) -> list[tuple[float, bool]]:
        """Return the goals that were searched, ascending, and whether of every class."""
        searches = (s for system in self.systems.values() for s in system.searches)
        return sorted({(s.goal, s.every_class) for s in searches})


def write_result(path: Path, result: GoodputResult) -> None:
    """Write it as JSON.

    Raises:
        BenchError: It cannot be written.
    """
    write_json(
        path,
        result.head
        | {
            "goodput_schema_version": SCHEMA_VERSION,
            "workload": {
                "origin": result.origin,
                "length_scale": result.length_scale,
                "class_slos_s": result.class_slos_s,
            },
            "systems": {name: _system_json(system) for name, system in result.systems.items()},
        },
    )


def read_result(path: Path) -> GoodputResult:
    """Read it back.

    Raises:
        UsageError: It is not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        systems = document.pop("systems")
        workload = document.pop("workload")
        if document.pop("goodput_schema_version") != SCHEMA_VERSION:
            raise UsageError(f"{path} was written by another version of the bench")
        return GoodputResult(
            head=document,
            systems={name: _read_system(name, system) for name, system in systems.items()},
            **workload,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a result of bench goodput: {error!r}") from error


def _system_json(system: SystemResult) -> dict[str, Any]:
    return {
        "server": system.server,
        "solo": system.solo,
        "searches": [asdict(search) for search in system.searches],
        "probes": [
            {
                "rate_per_s": probe.rate_per_s,
                "seed": probe.seed,
                "slo_scale": probe.slo_scale,
                "num_requests": probe.num_requests,
                "is_abandoned": probe.is_abandoned,
                "attained": probe.attained,
                "class_attained": probe.class_attained,
                "rows": [asdict(row) | {"ttft_s": row.ttft_s} for row in probe.rows],
            }
            for probe in system.probes
        ],
    }


def _read_system(name: str, document: Mapping[str, Any]) -> SystemResult:
    return SystemResult(
        name=name,
        server=document["server"],
        solo=[(num_tokens, seconds) for num_tokens, seconds in document["solo"]],
        searches=[Search(**search) for search in document["searches"]],
        probes=[_read_probe(probe) for probe in document["probes"]],
    )


def _read_probe(document: Mapping[str, Any]) -> Probe:
    computed = ("attained", "class_attained", "rows")
    rows = tuple(
        RequestRow(**{key: value for key, value in row.items() if key != "ttft_s"})
        for row in document["rows"]
    )
    return Probe(rows=rows, **{k: v for k, v in document.items() if k not in computed})
