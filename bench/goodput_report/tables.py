"""Tables of a report: headings and rows of text, ready for a page."""

from statistics import median

from bench.goodput.analysis import best_peer, greatest_loads, probes_of
from bench.goodput.numbers import NOTHING, goodput_text, share_text
from bench.goodput.result import GoodputResult, SystemResult
from bench.goodput_report.options import ReportOptions
from bench.goodput_report.selection import (
    class_shares,
    probes_at_maximum,
    ranked,
    reference_scale,
    worst_shares,
)
from bench.replaying.metrics import percentile
from bench.results.page import Table, command_text


def goodput_table(result: GoodputResult, options: ReportOptions) -> Table:
    """Max goodput of every system at every goal, and the worst class at the report's goal."""
    scale, kinds = reference_scale(result), result.kinds()
    rows = []
    for system in ranked(result, options, scale):
        by_goal = [
            goodput_text(system.searches_for(scale, goal, every_class=every_class))
            for goal, every_class in kinds
        ]
        at_maximum = probes_at_maximum(system, scale, options.goal)
        smallest = min(num_requests(system, name) for name in result.class_slos_s)
        worst = share_text(worst_shares(at_maximum), smallest)
        rows.append((system.name, *by_goal, worst))
    headings = (
        "system",
        *(
            f"requests/s, {goal:.0%} {'of every class ' if every_class else ''}in time"
            for goal, every_class in kinds
        ),
    )
    return Table(
        "max-goodput",
        "Max goodput, median over seeds (lowest rate that passed to highest that failed), with the "
        f"worst class at {options.goal:.0%}",
        (*headings, "worst class in time"),
        rows,
    )


def scale_table(result: GoodputResult, options: ReportOptions) -> Table | None:
    """Max goodput of every system at every objective scale; None with one scale."""
    scales = result.slo_scales()
    if len(scales) < 2:
        return None
    rows = []
    for system in ranked(result, options, reference_scale(result)):
        found = (system.searches_for(scale, options.goal) for scale in scales)
        rows.append((system.name, *map(goodput_text, found)))
    return Table(
        "max-goodput-by-scale",
        f"Max goodput, requests/s with {options.goal:.0%} in time, by scale of all objectives",
        ("system", *(f"x{scale:g}" for scale in scales)),
        rows,
    )


def class_table(result: GoodputResult, options: ReportOptions) -> Table:
    """Each class's share in time, each system at its own max goodput.

    Also the subject at the max goodput of the best peer, where it replayed that load.
    """
    scale = reference_scale(result)
    measured = [
        (system.name, system, probes_at_maximum(system, scale, options.goal))
        for system in ranked(result, options, scale)
    ]
    subject = result.systems.get(options.subject)
    peer = best_peer(result, options.subject, scale, options.goal)
    if subject and peer:
        shared = probes_of(subject, greatest_loads(peer, scale, options.goal))
        if shared:
            measured.append((f"{subject.name}, at the load of {peer.name}", subject, shared))
    rows = []
    for label, system, probes in measured:
        shares = class_shares(probes)
        cells = [
            share_text(shares.get(name, []), num_requests(system, name))
            for name in result.class_slos_s
        ]
        rows.append((label, *cells))
    headings = [f"{name}: {slo * scale:g} s" for name, slo in result.class_slos_s.items()]
    return Table(
        "classes-at-max-goodput",
        "In time by class and objective, each system at its own max goodput",
        ("system", *headings),
        rows,
    )


def settings_table(result: GoodputResult, options: ReportOptions) -> Table:
    """How every system was started, with the lateness of the client beside it."""
    rows = []
    for system in ranked(result, options, reference_scale(result)):
        info = system.server.get("server_info", {})
        rows.append(
            (
                system.name,
                str(info.get("version", NOTHING)),
                command_text(system.server),
                f"{len(system.probes)}",
                client_lateness(system),
            )
        )
    return Table(
        "settings",
        "All systems: version, how they were started, replays, and how late the client was",
        ("system", "version", "environment and command", "replays", "client late, p99 ms"),
        rows,
        is_text=True,
    )


def client_lateness(system: SystemResult) -> str:
    """Return the 99th percentile of the client's lateness over all replays, in ms."""
    late_s = [row.lateness_s for probe in system.probes for row in probe.rows]
    return f"{percentile(late_s, 0.99) * 1000:.1f}" if late_s else NOTHING


def num_requests(system: SystemResult, slo_class: str | None = None) -> int:
    """Return how many requests, of a class, a whole replay holds; at least 1."""
    counts = [
        sum(slo_class in {None, row.slo_class} for row in probe.rows)
        for probe in system.probes
        if not probe.is_abandoned
    ]
    return max(1, round(median(counts))) if counts else 1
