"""TTFT objectives by request class.

Source: FlowPrefill HEAD, ``benchmarks/benchmark_online.py`` (Llama-3.1-8B on one GPU). Slower
machines scale the whole table by one factor and say so beside the result.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.errors import UsageError

AUTHORS_TTFT_SLO_S: Mapping[str, float] = {
    "text": 0.25,
    "image": 0.5,
    "search": 4.0,
    "file": 6.0,
}


def ttft_slos_s(
    classes: Iterable[str], scale: float, overrides: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the scaled objective of each class, tightest first.

    Args:
        classes: Classes of the workload, in any order, repeated or not.
        scale: Factor on every objective, the overrides included.
        overrides: Unscaled seconds for classes that the authors' table lacks or that should
            differ from it.

    Raises:
        UsageError: A class has no objective.
    """
    table_s = {**AUTHORS_TTFT_SLO_S, **(overrides or {})}
    wanted = set(classes)
    unknown = sorted(wanted - table_s.keys())
    if unknown:
        raise UsageError(
            f"no TTFT objective for class {', '.join(map(repr, unknown))}; "
            f"known: {', '.join(table_s)}; add one with --slo CLASS=SECONDS"
        )
    slos_s = {name: seconds * scale for name, seconds in table_s.items() if name in wanted}
    return dict(sorted(slos_s.items(), key=lambda item: item[1]))


def write_slo_classes(
    path: Path, slos_s: Mapping[str, float], tpot_slos_s: Mapping[str, float] | None = None
) -> Path:
    """Write TTFT and TPOT objectives as ``--flowprefill-slo-config`` reads them; JSON is YAML."""
    classes = {name: {"ttft_slo_ms": seconds * 1000} for name, seconds in slos_s.items()}
    for name, seconds in (tpot_slos_s or {}).items():
        classes[name]["tpot_slo_ms"] = seconds * 1000
    path.write_text(json.dumps({"classes": classes}, indent=1) + "\n", encoding="utf-8")
    return path
