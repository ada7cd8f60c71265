"""``urgent``: the head-of-line test. What does one long prefill cost the urgent prompts behind it?

On an idle server: the TTFT of the urgent prompt, and of the long one alone. Then the long prompt
is sent and, while it prefills, urgent ones one by one, each sent when the one before had its
first token. A server that preempts serves them at nearly their idle TTFT, and the long prompt
ends later by just their work; a server that does not makes the first wait for the long one's
whole prefill (or chunk), so that few fit in at all. How many did is part of the result.
"""

import argparse
import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median

import aiohttp
from rich.console import Console
from rich.table import Table

from bench.arguments import add_option_fields, config_of, options_of, server_options
from bench.comparison.report import measured_on, new_folder, result_console, result_head, write_json
from bench.replaying.metrics import percentile
from bench.systems.client import StreamTiming, http_session, timed_prompt
from bench.systems.engine import Endpoint
from bench.systems.servers import ServerDescription, running_server
from bench.workloads.prompts import UniquePrompts
from bench.workloads.slo import ttft_slos_s, write_slo_classes

URGENT_CLASS = "text"
LONG_CLASS = "file"

# Share of its solo TTFT after which the long prompt is taken to be in its prefill.
_HEAD_START = 0.05
_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class UrgentOptions:
    """What is sent.

    Attributes:
        long_tokens: Length of the prompt that everything waits for.
        urgent_tokens: Length of the prompts that cannot wait.
        num_urgent: How many urgent ones to send during the long prefill, if they fit.
        num_idle: How many urgent ones to send to the idle server.
        num_solo: How often the long one is measured alone.
        slo_scale: Factor on the objectives of class text (urgent) and file (long).
        seed: Of the prompts.
    """

    long_tokens: int = 8000
    urgent_tokens: int = 32
    num_urgent: int = 20
    num_idle: int = 20
    num_solo: int = 2
    slo_scale: float = 4.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class UrgentResult:
    """One system's answer. All TTFTs are seconds from send to first token.

    Attributes:
        idle_ttfts_s: Urgent prompts on the idle server.
        solo_ttfts_s: The long prompt alone.
        urgent_ttfts_s: Urgent prompts sent while the long one prefilled, in order.
        num_overtaking: How many of those had their first token before the long one had.
        long_ttft_s: The long prompt with all of that in between.
    """

    idle_ttfts_s: list[float]
    solo_ttfts_s: list[float]
    urgent_ttfts_s: list[float]
    num_overtaking: int
    long_ttft_s: float

    @property
    def idle_s(self) -> float:
        """Median TTFT of an urgent prompt on the idle server."""
        return median(self.idle_ttfts_s)

    @property
    def slowdown(self) -> float:
        """Median urgent TTFT during the long prefill, as a multiple of idle; 1 is perfect."""
        return median(self.urgent_ttfts_s) / self.idle_s

    @property
    def long_overhead(self) -> float:
        """Long TTFT over the work in it: its own plus that of the overtaking; 1 is perfect."""
        work_s = median(self.solo_ttfts_s) + self.num_overtaking * self.idle_s
        return self.long_ttft_s / work_s

    def figures(self) -> dict[str, float | int]:
        """Return the derived numbers, in reading order."""
        return {
            "urgent idle p50 s": self.idle_s,
            "urgent sent during long": len(self.urgent_ttfts_s),
            "  of which overtook it": self.num_overtaking,
            "urgent p50 s": median(self.urgent_ttfts_s),
            "urgent p90 s": percentile(self.urgent_ttfts_s, 0.9),
            "urgent max s": max(self.urgent_ttfts_s),
            "urgent p50 / idle": self.slowdown,
            "long solo p50 s": median(self.solo_ttfts_s),
            "long with urgent s": self.long_ttft_s,
            "long / (solo + urgent work)": self.long_overhead,
        }


async def measure_urgent(server: Endpoint, options: UrgentOptions) -> UrgentResult:
    """Run the head-of-line test against a warm, idle server.

    Raises:
        ServerError: A request failed; on an otherwise idle server none may.
    """
    async with http_session() as session:
        sender = _Sender(session, server, options)
        idle = [await sender.urgent() for _ in range(options.num_idle)]
        solo = [await sender.long() for _ in range(options.num_solo)]
        long_task = asyncio.create_task(sender.long())
        try:
            await asyncio.sleep(_HEAD_START * median(timing.ttft_s for timing in solo))
            urgent = [await sender.urgent()]
            while len(urgent) < options.num_urgent and not long_task.done():
                urgent.append(await sender.urgent())
            long = await long_task
        finally:
            long_task.cancel()
    return UrgentResult(
        idle_ttfts_s=[timing.ttft_s for timing in idle],
        solo_ttfts_s=[timing.ttft_s for timing in solo],
        urgent_ttfts_s=[timing.ttft_s for timing in urgent],
        num_overtaking=sum(_came_before(timing, long) for timing in urgent),
        long_ttft_s=long.ttft_s,
    )


class _Sender:
    """Sends urgent and long prompts, no two alike, with the objectives of their classes."""

    def __init__(
        self, session: aiohttp.ClientSession, server: Endpoint, options: UrgentOptions
    ) -> None:
        self._session = session
        self._server = server
        self._options = options
        self._prompts = UniquePrompts(options.seed)
        self._slos_s = urgent_slos_s(options)

    async def urgent(self) -> StreamTiming:
        return await self._send(self._options.urgent_tokens, URGENT_CLASS)

    async def long(self) -> StreamTiming:
        return await self._send(self._options.long_tokens, LONG_CLASS)

    async def _send(self, num_tokens: int, slo_class: str) -> StreamTiming:
        return await timed_prompt(
            self._session,
            self._server,
            self._prompts.draw(num_tokens),
            _LIMIT_S,
            slo_ttft_s=self._slos_s[slo_class],
            slo_class=slo_class,
        )


def urgent_slos_s(options: UrgentOptions) -> dict[str, float]:
    """Return the objectives of the two classes."""
    return ttft_slos_s((URGENT_CLASS, LONG_CLASS), options.slo_scale)


def _came_before(timing: StreamTiming, other: StreamTiming) -> bool:
    return timing.sent_s + timing.ttft_s < other.sent_s + other.ttft_s


def urgent_title(options: UrgentOptions, servers: Iterable[ServerDescription]) -> str:
    """Say what was sent and on what it was measured."""
    return (
        f"{options.urgent_tokens}-token prompts during one {options.long_tokens}-token prefill, "
        f"SLOs x{options.slo_scale:g}, {measured_on(servers)}"
    )


def print_urgent(title: str, results: Mapping[str, UrgentResult], console: Console) -> None:
    """Print the systems side by side, and say so where the urgent prompts did not fit in."""
    table = Table(title=title)
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    figures = {name: result.figures() for name, result in results.items()}
    for label in next(iter(figures.values())):
        table.add_row(label, *(_cell(of_system[label]) for of_system in figures.values()))
    console.print(table)
    for name, result in results.items():
        num_sent = len(result.urgent_ttfts_s)
        if result.num_overtaking < num_sent:
            console.print(
                f"{name}: {num_sent - result.num_overtaking} of {num_sent} urgent prompts had to "
                f"wait until the long one had its first token",
                style="yellow",
            )


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


async def run_urgent(args: argparse.Namespace) -> None:
    """Run the test on each system in turn; print, and write what is known after each.

    Raises:
        BenchError: A system cannot be measured; results of those before it are kept.
    """
    console = result_console()
    options = options_of(args, UrgentOptions)
    folder = new_folder(args.out)
    slos_s = urgent_slos_s(options)
    shared = server_options(args, write_slo_classes(folder / "slo-classes.yaml", slos_s))
    results: dict[str, UrgentResult] = {}
    servers: dict[str, ServerDescription] = {}
    for name in args.systems:
        console.print(f"{name}: starting, then head-of-line test")
        log = folder / f"{name}.log"
        async with running_server(name, shared, log, options.long_tokens) as server:
            results[name] = await measure_urgent(server.endpoint, options)
        servers[name] = server.description
        title = urgent_title(options, servers.values())
        document = result_head(title, config_of(args), options.seed) | {
            "systems": {
                name: asdict(servers[name]) | {"figures": result.figures(), "raw": asdict(result)}
                for name, result in results.items()
            }
        }
        write_json(folder / "result.json", document)
    print_urgent(title, results, console)
    console.print(f"written: {folder}")


def add_urgent_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides which prompts are sent."""
    add_option_fields(parser, "head-of-line test", UrgentOptions())
