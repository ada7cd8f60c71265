"""What ``simulate`` says and writes. The same answer gives the same bytes."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang_flowprefill import __version__
from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.sim.deployment import System
from sglang_flowprefill.sim.study.calibration import FRACTIONS, Calibrated, ClassErrors
from sglang_flowprefill.sim.study.goodput import COST_FACTORS, SEEDS, Band, MaxRate, Sizing
from sglang_flowprefill.sim.study.paired import PairedClass
from sglang_flowprefill.sim.study.serving import Deployment, Row, Run, percentile
from sglang_flowprefill.sim.workload import Workload

_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")
_WIDTH, _HEIGHT, _MARGIN = 640, 360, 50


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that was found out.

    Attributes:
        deployment: What serves.
        workload: What was offered.
        goal: Share of requests that must meet their objectives.
        band: Its maximum rate.
        other: The system that it is compared with.
        versus: That one's maximum rate.
        at_rate: A run at the rate asked for; None if none was.
        sizes: What that rate needs, by goal.
    """

    deployment: Deployment
    workload: Workload
    goal: float
    band: Band
    other: System
    versus: MaxRate
    at_rate: Run | None
    sizes: Sequence[Sizing]


def answer_text(answer: Answer) -> str:
    """Return the answer, its first lines first."""
    return "\n".join([*_headline(answer), "", *_table(answer), "", *_notes(answer)])


def _headline(answer: Answer) -> list[str]:
    deployment, nominal = answer.deployment, answer.band.nominal
    on = f"{deployment.num_gpus} GPU{'s' if deployment.num_gpus > 1 else ''}"
    lines = [
        (
            f"max rate: {nominal.rate_per_s:.2f} requests/s on {on} with {answer.goal:.0%} in time "
            f"(band {answer.band.least_per_s:.2f} to {answer.band.most_per_s:.2f}: costs "
            f"{_percent(COST_FACTORS[0])}/{_percent(COST_FACTORS[-1])}, {len(SEEDS)} arrival seeds)"
        ),
    ]
    if answer.at_rate is not None:
        run = answer.at_rate
        is_met = run.attained >= answer.goal
        lines.append(
            f"at {run.rate_per_s:.2f}/s: {run.attained:.1%} in time, the goal of {answer.goal:.0%} "
            f"is {'met' if is_met else 'MISSED'}; headroom to the knee "
            f"{nominal.rate_per_s / run.rate_per_s - 1.0:+.0%}"
        )
        needs = ", ".join(
            f"{s.num_gpus} at {s.goal:.0%}" if s.num_gpus else f"out of reach at {s.goal:.0%}"
            for s in answer.sizes
        )
        lines.append(f"GPUs for {run.rate_per_s:.2f}/s: {needs}")
    run = answer.at_rate or nominal.run
    if run is not None:
        name, worst = run.worst_class
        lines.append(f"worst class: {name}, {worst.attained:.1%} in time")
    lines.append(f"versus {answer.other.name}: {_versus(answer)}")
    lines.append(f"binds: {run.binding if run is not None else 'no rate meets the goal'}")
    lines.append(f"costs from: {deployment.worker.cost.source} (not validated in a server)")
    return lines


def _versus(answer: Answer) -> str:
    ours, other = answer.band.nominal.rate_per_s, answer.versus.rate_per_s
    if not other:
        return f"that one meets the goal at no rate ({answer.other.what})"
    return f"{ours / other:.1f}x its {other:.2f}/s ({answer.other.what})"


def _table(answer: Answer) -> list[str]:
    run = answer.at_rate or answer.band.nominal.run
    if run is None:
        return []
    slos_s = {row.slo_class: row.slo_ttft_s for row in run.rows}
    lines = [
        f"simulated at {run.rate_per_s:.2f}/s, TTFT in s",
        f"{'class':<14}{'n':>7}{'SLO':>9}{'in time':>9}{'p50':>9}{'p90':>9}{'p99':>9}{'max':>9}",
    ]
    for name, c in run.classes.items():
        lines.append(
            f"{name:<14}{c.num_requests:>7}{slos_s[name]:>9.3g}{c.attained:>9.1%}"
            f"{c.p50_s:>9.3f}{c.p90_s:>9.3f}{c.p99_s:>9.3f}{c.max_s:>9.3f}"
        )
    if run.blocking_s:
        blocking = sorted(run.blocking_s)
        p50, p99 = (percentile(blocking, fraction) * 1e3 for fraction in (0.5, 0.99))
        lines.append(f"blocking of {len(blocking)} yields, ms: p50 {p50:.2f}, p99 {p99:.2f}")
    return lines


def _notes(answer: Answer) -> list[str]:
    workload, deployment = answer.workload, answer.deployment
    inputs = sorted(r.num_input_tokens for r in workload.requests)
    lines = [
        (
            f"{deployment.system.name} ({deployment.system.what}), {deployment.num_instances} x "
            f"{deployment.worker.name}, router {deployment.router}"
        ),
        (
            f"workload: {workload.origin}, {len(workload.requests)} requests, gaps with CV "
            f"{workload.arrival_cv:.2f}, prompts p50 {percentile(inputs, 0.5)}, p99 "
            f"{percentile(inputs, 0.99)}, longest {inputs[-1]} tokens; hash {workload.digest}"
        ),
        "decode: " + _decode_note(answer),
        *_run_note(answer),
        f"rates by variation: {_variations(answer.band)}",
    ]
    if answer.band.nominal.run is not None and answer.at_rate is None:
        lines.append("beyond saturation the longest prompts are late so that others are not")
    return lines


def _run_note(answer: Answer) -> list[str]:
    run = answer.at_rate or answer.band.nominal.run
    if run is None:
        return []
    return [f"a run at this rate: {len(run.rows)} requests, {run.rows[-1].scheduled_s:.0f} s"]


def _decode_note(answer: Answer) -> str:
    if answer.workload.first_tokens_only:
        return "none: only first tokens are judged, as of a prefill server"
    if answer.deployment.num_decode_instances is None:
        return "in the same servers"
    return f"on {answer.deployment.num_decode_instances} servers of their own"


def _variations(band: Band) -> str:
    return ", ".join(f"{what} {rate:.2f}" for what, rate in band.variations.items())


def comparison_text(
    names: Sequence[str],
    runs: Sequence[Run],
    paired: Sequence[PairedClass],
    deployment: Deployment,
    workload: Workload,
) -> str:
    """Return two systems side by side."""
    first, second = names
    lines = [
        (
            f"{second} against {first}, request by request, {runs[0].rate_per_s:.2f}/s of "
            f"{workload.origin} (simulated)"
        ),
        f"in time: {first} {runs[0].attained:.1%}, {second} {runs[1].attained:.1%}",
        f"costs from: {deployment.worker.cost.source} (not validated in a server)",
        "",
        f"{'class':<14}{'n':>7}{'gained':>9}{'lost':>7}{'TTFT median s':>15}{'mean s':>10}",
    ]
    lines += [
        f"{c.class_name:<14}{c.num_requests:>7}{c.num_gained:>9}{c.num_lost:>7}"
        f"{c.median_s:>+15.3f}{c.mean_s:>+10.3f}"
        for c in paired
    ]
    return "\n".join(lines)


def calibration_text(found: Calibrated) -> str:
    """Return what a calibration found, with the errors before and after."""
    lines = [
        f"calibrated: costs x {found.factor:.3f}, plus {found.offset_s * 1e3:.2f} ms a pass",
        f"{'class':<14}{'n':>6}   {'errors before':<26}   {'after':<26}   in time: measured, after",
        f"{'':<14}{'':>6}   {_heads():<26}   {_heads():<26}",
    ]
    for name, before in found.before.items():
        after = found.after[name]
        lines.append(
            f"{name:<14}{before.num_requests:>6}   {_errors(before):<26}   {_errors(after):<26}   "
            f"{after.measured_attained:.1%}, {after.simulated_attained:.1%}"
        )
    lines.append(_verdict(found.after))
    return "\n".join(lines) + "\n"


def _heads() -> str:
    return " ".join(f"{f'p{fraction * 100:g}':>8}" for fraction in FRACTIONS)


def _errors(compared: ClassErrors) -> str:
    return " ".join("     n/a" if math.isnan(e) else f"{e:>+8.1%}" for e in compared.relative)


def _verdict(after: Mapping[str, ClassErrors]) -> str:
    limits = (0.1, 0.1, 0.2)
    within = [
        all(math.isnan(e) or abs(e) <= limit for e, limit in zip(c.relative, limits, strict=True))
        for c in after.values()
    ]
    if all(within):
        return "verdict: p50 and p90 within 10 %, p99 within 20 %, in every class"
    names = [name for name, is_within in zip(after, within, strict=True) if not is_within]
    return f"verdict: not within 10 % (p50, p90) and 20 % (p99) for {', '.join(names)}"


# ---- files ----


def write_answer(folder: Path, answer: Answer) -> None:
    """Write answer.json, rows.json, timeline.json and attainment.svg.

    Raises:
        PlanError: The folder cannot be written to.
    """
    run = answer.at_rate or answer.band.nominal.run
    document = {
        "simulated": True,
        "version": __version__,
        "costs_from": answer.deployment.worker.cost.source,
        "system": answer.deployment.system.name,
        "worker": answer.deployment.worker.name,
        "num_instances": answer.deployment.num_instances,
        "num_gpus": answer.deployment.num_gpus,
        "router": answer.deployment.router,
        "settings": asdict(answer.deployment.settings),
        "workload": {"origin": answer.workload.origin, "hash": answer.workload.digest},
        "goal": answer.goal,
        "max_rate_per_s": answer.band.nominal.rate_per_s,
        "band_per_s": [answer.band.least_per_s, answer.band.most_per_s],
        "variations_per_s": answer.band.variations,
        "versus": {answer.other.name: answer.versus.rate_per_s},
        "sizes": [asdict(size) for size in answer.sizes],
        "classes": {} if run is None else {n: asdict(c) for n, c in run.classes.items()},
        "binding": None if run is None else run.binding,
    }
    files = {"answer.json": _json(document)}
    if run is not None:
        files["rows.json"] = _json({"simulated": True, "rows": [_row(row) for row in run.rows]})
        files["timeline.json"] = _json(_timeline(run.rows))
        files["ttft.svg"] = ttft_picture({answer.deployment.system.name: run})
    _write(folder, files)


def write_comparison(
    folder: Path, names: Sequence[str], runs: Sequence[Run], paired: Sequence[PairedClass]
) -> None:
    """Write comparison.json and ttft.svg.

    Raises:
        PlanError: The folder cannot be written to.
    """
    by_name = dict(zip(names, runs, strict=True))
    document = {
        "simulated": True,
        "classes": [asdict(c) for c in paired],
        "systems": {
            name: {"rows": [_row(row) for row in run.rows]} for name, run in by_name.items()
        },
    }
    _write(folder, {"comparison.json": _json(document), "ttft.svg": ttft_picture(by_name)})


def _write(folder: Path, files: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise PlanError(f"--out {folder}: cannot be written: {error.strerror}") from error


def _json(document: Any) -> str:
    return json.dumps(document, indent=1) + "\n"


def _row(row: Row) -> dict[str, Any]:
    return asdict(row) | {"sent_s": row.scheduled_s, "ttft_s": row.ttft_s, "error": None}


def _timeline(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a Chrome trace: a lane for each class at each instance."""
    events = []
    for row in rows:
        common = {"ph": "X", "pid": row.instance, "tid": row.slo_class}
        name = f"{row.index}: {row.num_input_tokens} tokens"
        wait = {"name": name, "ts": row.scheduled_s * 1e6, "dur": row.ttft_s * 1e6}
        events.append(common | wait | {"args": {"preemptions": row.num_preemptions}})
        if row.finished_s > row.first_token_s:
            duration = (row.finished_s - row.first_token_s) * 1e6
            decode = {"name": f"{name}, decode", "ts": row.first_token_s * 1e6, "dur": duration}
            events.append(common | decode)
    return {"traceEvents": events}


def ttft_picture(runs: Mapping[str, Run]) -> str:
    """Draw the share of requests by TTFT over SLO, one line for each system, as SVG."""
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
            'font-family="sans-serif" font-size="12">'
        ),
        f'<text x="{_MARGIN}" y="20">share of requests by TTFT over SLO (simulated)</text>',
    ]
    span_x, span_y = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    top = 3.0

    def point(ratio: float, share: float) -> str:
        x = _MARGIN + span_x * min(ratio, top) / top
        return f"{x:.1f},{_HEIGHT - _MARGIN - span_y * share:.1f}"

    for tick in (0.0, 1.0, 2.0, 3.0):
        x = _MARGIN + span_x * tick / top
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _MARGIN + 18}">{tick:g}</text>')
        parts.append(
            f'<line x1="{x:.1f}" y1="{_MARGIN}" x2="{x:.1f}" y2="{_HEIGHT - _MARGIN}" '
            'stroke="#cccccc"/>'
        )
    for number, (name, run) in enumerate(runs.items()):
        ratios = sorted(row.ttft_s / row.slo_ttft_s for row in run.rows)
        line = " ".join(point(r, (i + 1) / len(ratios)) for i, r in enumerate(ratios))
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        parts.append(
            f'<text x="{_WIDTH - _MARGIN - 120}" y="{_HEIGHT - _MARGIN - 20 - 16 * number}" '
            f'fill="{colour}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _percent(factor: float) -> str:
    return f"{factor - 1.0:+.0%}"
