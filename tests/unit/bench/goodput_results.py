"""Builder of goodput results for tests. Nothing in them was ever measured."""

from random import Random

from bench.goodput.result import GoodputResult, Probe, Search, SystemResult
from bench.replaying.row import RequestRow

CLASS_SLOS_S = {"text": 1.0, "image": 2.0, "search": 16.0, "file": 24.0}
_SHARES = (0.69, 0.07, 0.2, 0.04)
_TITLE = "SYNTHETIC: 120 requests of no trace, lengths x0.25, SLOs x4, measured on nothing"


def probe(rate_per_s, limit_per_s, seed, slo_scale=1.0, num_requests=120, goal=0.9):
    """Return a replay by a made-up system that is late beyond ``limit_per_s``."""
    random = Random(f"{rate_per_s} {limit_per_s} {seed} {slo_scale}")
    load = rate_per_s / limit_per_s
    rows = []
    for index in range(num_requests):
        name = random.choices(list(CLASS_SLOS_S), _SHARES)[0]
        slo_s = CLASS_SLOS_S[name] * slo_scale
        late = random.random() < (0.02 + 0.07 * load if load <= 1 else min(1.0, 0.25 * load))
        ttft_s = slo_s * (random.uniform(1.1, 6) if late else random.uniform(0.05, 0.95))
        rows.append(_row(index, name, index / rate_per_s, ttft_s, slo_s))
    missed = sum(row.ttft_s > row.slo_ttft_s for row in rows)
    is_abandoned = missed > 1.5 * (1 - goal) * num_requests
    kept = rows[: num_requests // 2] if is_abandoned else rows
    return Probe(rate_per_s, seed, slo_scale, num_requests, is_abandoned, tuple(kept))


def _row(index, name, at_s, ttft_s, slo_s):
    return RequestRow(
        index=index,
        slo_class=name,
        num_input_tokens=100,
        num_output_tokens=1,
        slo_ttft_s=slo_s,
        scheduled_s=at_s,
        sent_s=at_s + 0.001,
        first_token_s=at_s + 0.001 + ttft_s,
        finished_s=at_s + 0.001 + ttft_s,
        num_generated_tokens=1,
        error=None,
    )


# Of every length.
SOLO = ((1, 0.35), (100_000, 0.35))


def system(name, limit_per_s, seeds=(0, 1, 2), scales=(1.0,), goals=(0.9,), solo=()):
    """Return a made-up system whose limit grows with the objective scale."""
    server = {
        "command": ["python", "-m", name, "--a-long-flag-of-it", "some-value", "--port", "1"],
        "environment": {"A_VARIABLE": "1"},
        "server_info": {"version": "0.0", "device": "nothing"},
    }
    found = SystemResult(name, server=server, solo=list(solo))
    for scale in scales:
        for seed in seeds:
            limit = limit_per_s * scale**0.4 * (1 + 0.02 * (seed - 1))
            rates = [1.0, *(limit * share for share in (0.8, 0.95, 1.0, 1.05, 1.4))]
            found.probes += [probe(rate, limit, seed, scale) for rate in rates]
            found.searches += [
                Search(seed, scale, goal, limit * (1 - (goal - 0.9)), limit * 1.02 * (1.9 - goal))
                for goal in goals
            ]
    return found


def goodput_result(systems=None, **options) -> GoodputResult:
    """Return a made-up result of some systems by their limits."""
    limits = systems or {"flowprefill": 2.9, "stock": 0.4, "vllm-tuned": 2.2}
    head = {
        "schema_version": 1,
        "title": _TITLE,
        "provenance": {
            "measured_at": "2000-01-01T00:00:00+00:00",
            "commit": "0" * 40,
            "is_dirty": True,
            "command": "python -m bench goodput --systems none",
            "versions": {"python": "0", "torch": None},
            "hardware": {"cpu_model": "no processor", "num_cores": 0, "memory_gib": 0},
        },
        "config": {"slo_scale": 4.0},
        "seed": 0,
    }
    made = {
        name: system(name, limit, solo=SOLO if name == "flowprefill" else (), **options)
        for name, limit in limits.items()
    }
    return GoodputResult(head, "no trace (made up)", 0.25, CLASS_SLOS_S, made)
