"""``streaming``: what do long prompts do to the gaps between the tokens of those who are served?

Some streams decode without pause, each beginning again when it ends. First alone: the gaps of the
same decode load on an idle server. Then a long prompt comes every so many seconds, whether the
one before it is through or not, the first once the streams are under way. Gaps are between lines of
one stream, as its reader sees them; the wait for a stream's first token is no gap. Where a stream,
when the time is over, has waited longer than in any gap before, that counts as a gap too: a server
that has stopped decoding must not look as if it had none.
"""

import argparse
import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import aiohttp
from rich.console import Console
from rich.table import Table

from bench.arguments import add_option_fields, config_of, options_of, server_options
from bench.comparison.report import measured_on, new_folder, result_console, result_head, write_json
from bench.errors import ServerError
from bench.replaying.metrics import percentile
from bench.systems.client import StreamTiming, http_session, timed_generate
from bench.systems.engine import Endpoint
from bench.systems.servers import ServerDescription, running_server
from bench.workloads.prompts import UniquePrompts
from bench.workloads.slo import write_slo_classes

STREAM_CLASS, LONG_CLASS = "stream", "long"
_LIMIT_S = 600.0
_HEAD_START_S = 3.0  # of the streams


@dataclass(frozen=True, slots=True)
class StreamingOptions:
    """What is sent.

    Attributes:
        num_streams: Requests that decode at any time.
        stream_tokens: Their prompts.
        output_tokens: Tokens that each generates before the next takes its place.
        long_tokens: The prompt that comes in between.
        every_s: Seconds from one long prompt to the next.
        phase_s: Seconds alone, and again seconds with long prompts.
        stream_slo_s: TTFT objective of the streams.
        long_slo_s: TTFT objective of the long prompts.
        tpot_slo_ms: TPOT objective of the streams, for servers that know one.
        seed: Of the prompts.
    """

    num_streams: int = 4
    stream_tokens: int = 64
    output_tokens: int = 400
    long_tokens: int = 8000
    every_s: float = 20.0
    phase_s: float = 60.0
    stream_slo_s: float = 2.0
    long_slo_s: float = 60.0
    tpot_slo_ms: float = 100.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the test.

    Attributes:
        gaps_s: Between tokens, all streams together.
        first_tokens_s: TTFTs of the streams.
        long_ttfts_s: TTFTs of the long prompts; None for one that had no token in time.
        duration_s: How long it took.
    """

    gaps_s: list[float]
    first_tokens_s: list[float]
    long_ttfts_s: list[float | None]
    duration_s: float

    def gap_s(self, fraction: float) -> float:
        """Return a percentile of the gaps; not a number where no stream had a token."""
        return percentile(self.gaps_s, fraction) if self.gaps_s else math.nan


@dataclass(frozen=True, slots=True)
class StreamingResult:
    """Both parts of one system's test."""

    alone: Phase
    with_long: Phase

    def figures(self) -> dict[str, float]:
        """Return the derived numbers, in reading order."""
        alone, both = self.alone, self.with_long
        served = [ttft_s for ttft_s in both.long_ttfts_s if ttft_s is not None]
        return {
            "gap alone p50 ms": 1e3 * alone.gap_s(0.5),
            "gap alone p99 ms": 1e3 * alone.gap_s(0.99),
            "gap alone max ms": 1e3 * alone.gap_s(1.0),
            "gap with long p50 ms": 1e3 * both.gap_s(0.5),
            "gap with long p99 ms": 1e3 * both.gap_s(0.99),
            "gap with long max ms": 1e3 * both.gap_s(1.0),
            "p99 with long / alone": both.gap_s(0.99) / alone.gap_s(0.99),
            "tokens/s alone": len(alone.gaps_s) / alone.duration_s,
            "tokens/s with long": len(both.gaps_s) / both.duration_s,
            "stream TTFT with long p50 s": median(both.first_tokens_s or [math.nan]),
            "long prompts sent": len(both.long_ttfts_s),
            "long TTFT p50 s": median(served or [math.nan]),
        }


async def measure_streaming(server: Endpoint, options: StreamingOptions) -> StreamingResult:
    """Run both parts against a warm, idle server.

    Raises:
        ServerError: A stream failed.
    """
    async with http_session() as session:
        sender = _Sender(session, server, options)
        alone = await sender.phase(with_long=False)
        with_long = await sender.phase(with_long=True)
    return StreamingResult(alone, with_long)


class _Sender:
    def __init__(
        self, session: aiohttp.ClientSession, server: Endpoint, options: StreamingOptions
    ) -> None:
        self._session = session
        self._server = server
        self._options = options
        self._prompts = UniquePrompts(options.seed)

    async def phase(self, *, with_long: bool) -> Phase:
        start_s = perf_counter()
        end_s = start_s + self._options.phase_s
        streams = [self._stream(end_s) for _ in range(self._options.num_streams)]
        long = self._long_prompts(end_s) if with_long else _nothing()
        timings, long_ttfts_s = await asyncio.gather(asyncio.gather(*streams), long)
        flat = [timing for stream in timings for timing in stream]
        return Phase(
            gaps_s=[gap for timing in flat for gap in _gaps_s(timing, end_s)],
            first_tokens_s=[t.ttft_s for t in flat if t.first_token_s is not None],
            long_ttfts_s=long_ttfts_s,
            duration_s=perf_counter() - start_s,
        )

    async def _stream(self, end_s: float) -> list[StreamTiming]:
        """Decode until the end, one request after the other; the last one is cut short."""
        options, timings = self._options, []
        while (left_s := end_s - perf_counter()) > 0.0:
            timing = await self._send(
                options.stream_tokens,
                options.output_tokens,
                (options.stream_slo_s, STREAM_CLASS),
                left_s,
            )
            is_cut = timing.error is not None and timing.error.startswith("timeout")
            if timing.error is not None and not is_cut:
                raise ServerError(f"a stream failed: {timing.error}")
            timings.append(timing)
        return timings

    async def _long_prompts(self, end_s: float) -> list[float | None]:
        sent = []
        await asyncio.sleep(min(_HEAD_START_S, self._options.every_s))
        while perf_counter() < end_s:
            sent.append(asyncio.create_task(self._long()))
            await asyncio.sleep(self._options.every_s)
        return list(await asyncio.gather(*sent))

    async def _long(self) -> float | None:
        options = self._options
        objective = (options.long_slo_s, LONG_CLASS)
        timing = await self._send(options.long_tokens, 1, objective, _LIMIT_S)
        return None if timing.first_token_s is None else timing.ttft_s

    async def _send(
        self, num_tokens: int, num_output_tokens: int, objective: tuple[float, str], limit_s: float
    ) -> StreamTiming:
        slo_ttft_s, slo_class = objective
        request = self._server.engine.encode(
            self._prompts.draw(num_tokens),
            num_output_tokens,
            slo_ttft_s=slo_ttft_s,
            slo_class=slo_class,
        )
        return await timed_generate(self._session, self._server, request, limit_s)


async def _nothing() -> list[float | None]:
    return []


def _gaps_s(timing: StreamTiming, end_s: float) -> list[float]:
    times_s = timing.token_times_s
    gaps_s = [after - before for before, after in pairwise(times_s)]
    if timing.error is not None and times_s:
        still_waited_s = end_s - times_s[-1]
        if still_waited_s > max(gaps_s, default=0.0):
            gaps_s.append(still_waited_s)
    return gaps_s


def streaming_title(options: StreamingOptions, servers: Iterable[ServerDescription]) -> str:
    """Say what was sent and on what it was measured."""
    return (
        f"{options.num_streams} streams, and a {options.long_tokens}-token prompt every "
        f"{options.every_s:g} s, {measured_on(servers)}"
    )


def print_streaming(title: str, results: Mapping[str, StreamingResult], console: Console) -> None:
    """Print the systems side by side."""
    table = Table(title=title)
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    figures = [result.figures() for result in results.values()]
    for label in figures[0]:
        table.add_row(label, *(f"{of_system[label]:.3g}" for of_system in figures))
    console.print(table)


async def run_streaming(args: argparse.Namespace) -> None:
    """Run the test on each system in turn; print, and write what is known after each.

    Raises:
        BenchError: A system cannot be measured; results of those before it are kept.
    """
    console = result_console()
    options = options_of(args, StreamingOptions)
    folder = new_folder(args.out)
    shared = server_options(args, _write_classes(folder, options))
    results: dict[str, StreamingResult] = {}
    servers: dict[str, ServerDescription] = {}
    for name in args.systems:
        console.print(f"{name}: starting, then {2 * options.phase_s:g} s of streams")
        log = folder / f"{name}.log"
        async with running_server(name, shared, log, options.long_tokens) as server:
            results[name] = await measure_streaming(server.endpoint, options)
        servers[name] = server.description
        title = streaming_title(options, servers.values())
        _write(folder, title, results, servers, args)
    print_streaming(title, results, console)
    console.print(f"written: {folder}")


def _write_classes(folder: Path, options: StreamingOptions) -> Path:
    slos_s = {STREAM_CLASS: options.stream_slo_s, LONG_CLASS: options.long_slo_s}
    tpot_slos_s = {STREAM_CLASS: options.tpot_slo_ms / 1e3}
    return write_slo_classes(folder / "slo-classes.yaml", slos_s, tpot_slos_s)


def _write(
    folder: Path,
    title: str,
    results: Mapping[str, StreamingResult],
    servers: Mapping[str, ServerDescription],
    args: argparse.Namespace,
) -> None:
    document = result_head(title, config_of(args), args.seed) | {
        "systems": {
            name: asdict(servers[name]) | {"figures": result.figures(), "raw": asdict(result)}
            for name, result in results.items()
        }
    }
    write_json(folder / "result.json", document)


def add_streaming_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides who streams and what comes in between."""
    add_option_fields(parser, "streams", StreamingOptions())
