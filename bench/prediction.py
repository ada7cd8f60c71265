"""``prediction``: how wrong is the predictor, and how soon is it right again on a slower machine?

Prompts of mixed lengths, half of them after one of a few cached documents, in bursts that make
batches. The server reports every prefill with what it had predicted just before. In the middle
part other processes keep every core busy, so that the machine is about half as fast.
"""

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.arguments import add_option_fields, config_of, options_of, server_options
from bench.comparison.report import measured_on, new_folder, result_console, result_head, write_json
from bench.results.progress import progress_bar
from bench.systems.client import get_json, http_session, timed_prompt
from bench.systems.engine import Endpoint
from bench.systems.servers import running_server
from bench.workloads.prompts import UniquePrompts

mpl.use("Agg")  # before pyplot: machines that measure have no display

from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

_SYSTEM = "flowprefill"
_LIMIT_S = 600.0
_SLO_S = 600.0
_WINDOW = 25
_BURN = "while True: pass"


@dataclass(frozen=True, slots=True)
class PredictionOptions:
    """What is sent.

    Attributes:
        num_requests: In each part.
        num_documents: Prefixes that requests share.
        document_tokens: Their length.
        max_tokens: Longest prompt without prefix.
        max_burst: Requests that come at once, at most.
        seed: Of lengths and prompts.
    """

    num_requests: int = 150
    num_documents: int = 4
    document_tokens: int = 1200
    max_tokens: int = 2000
    max_burst: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prefill as the server reports it.

    Attributes:
        part: Of the test.
        num_requests: Sequences of the batch.
        num_uncached_tokens: Tokens computed.
        num_attention_pairs: Query-key pairs.
        actual_s: Seconds that it ran.
        predicted_s: What was predicted.
    """

    part: str
    num_requests: int
    num_uncached_tokens: int
    num_attention_pairs: float
    actual_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Relative error of the prediction, without sign."""
        return abs(self.predicted_s / self.actual_s - 1.0)

    @property
    def has_prefix(self) -> bool:
        """True if most of what it attended to was cached before."""
        own_pairs = self.num_uncached_tokens * (self.num_uncached_tokens + 1) / 2
        return self.num_attention_pairs > 1.5 * own_pairs


class _Sender:
    """Sends bursts, and collects what the server says of each prefill."""

    def __init__(
        self, session: aiohttp.ClientSession, server: Endpoint, options: PredictionOptions
    ) -> None:
        self._session = session
        self._server = server
        self._options = options
        self._rng = np.random.default_rng(options.seed)
        self._prompts = UniquePrompts(options.seed)
        self._documents = [
            self._prompts.draw(options.document_tokens) for _ in range(options.num_documents)
        ]
        self._num_seen = 0

    async def cache_documents(self) -> None:
        """Have the prefixes in the cache; what that teaches the predictor counts as seen."""
        for document in self._documents:
            await self._ask(document)
        await self.collect("")

    async def burst(self, num_left: int) -> int:
        """Send a few requests at once, wait for all, and return how many they were."""
        size = min(int(self._rng.integers(1, self._options.max_burst + 1)), num_left)
        await asyncio.gather(*(self._ask(self._prompt()) for _ in range(size)))
        return size

    async def collect(self, part: str) -> list[Prediction]:
        """Return the predictions since the last call."""
        info = await get_json(self._session, f"{self._server.url}/server_info")
        state: dict[str, Any] = info["internal_states"][0]["flowprefill"]["prediction"]
        num_new = state["num_observed"] - self._num_seen
        self._num_seen = state["num_observed"]
        return [Prediction(part, **record) for record in state["recent"][-num_new:] if num_new]

    def _prompt(self) -> list[int]:
        """Log-uniform lengths; half of the prompts go on from a document."""
        num_tokens = int(np.exp(self._rng.uniform(np.log(16), np.log(self._options.max_tokens))))
        new = self._prompts.draw(num_tokens)
        if self._rng.random() < 0.5:
            return new
        document = self._documents[int(self._rng.integers(len(self._documents)))]
        return document + new[: max(num_tokens // 4, 16)]

    async def _ask(self, prompt: Sequence[int]) -> None:
        await timed_prompt(self._session, self._server, prompt, _LIMIT_S, slo_ttft_s=_SLO_S)


@asynccontextmanager
async def busy_cores() -> AsyncIterator[None]:
    """Keep as many processes busy as this one may use cores."""
    burners = [
        subprocess.Popen([sys.executable, "-c", _BURN])  # noqa: ASYNC220, S603 (our own code)
        for _ in os.sched_getaffinity(0)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


async def measure_prediction(server: Endpoint, options: PredictionOptions) -> list[Prediction]:
    """Run the three parts against a server that has just started.

    Raises:
        ServerError: A request failed.
    """
    found: list[Prediction] = []
    async with http_session() as session:
        sender = _Sender(session, server, options)
        await sender.cache_documents()
        found += await _part("quiet", sender, options)
        async with busy_cores():
            found += await _part("busy cores", sender, options)
        found += await _part("quiet again", sender, options)
    return found


async def _part(name: str, sender: _Sender, options: PredictionOptions) -> list[Prediction]:
    found, num_left = [], options.num_requests
    with progress_bar() as progress:
        task = progress.add_task(name, total=options.num_requests)
        while num_left:
            num_sent = await sender.burst(num_left)
            num_left -= num_sent
            found += await sender.collect(name)
            progress.advance(task, num_sent)
    return found


def windows_of(found: Sequence[Prediction]) -> dict[str, list[tuple[int, int, float]]]:
    """Return, for each part, the median error of every window: first, past the last, error."""
    parts: dict[str, list[tuple[int, int, float]]] = {}
    for name in dict.fromkeys(prediction.part for prediction in found):
        errors = [prediction.error for prediction in found if prediction.part == name]
        parts[name] = [
            (start, min(start + _WINDOW, len(errors)), median(errors[start : start + _WINDOW]))
            for start in range(0, len(errors), _WINDOW)
        ]
    return parts


def print_prediction(title: str, found: Sequence[Prediction], console: Console) -> None:
    """Print the median error by window of each part, and by kind of prefill once it has learnt."""
    table = Table(title=title)
    for heading in ("part", "prefills", "median error"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for name, windows in windows_of(found).items():
        for start, stop, error in windows:
            table.add_row(name, f"{start + 1} - {stop}", f"{error:.1%}")
        table.add_section()
    console.print(table)
    quiet = [p for p in found if p.part == "quiet"][50:]
    for label, group in (
        ("all", quiet),
        ("after a cached prefix", [p for p in quiet if p.has_prefix]),
        ("batches", [p for p in quiet if p.num_requests > 1]),
    ):
        if group:
            error = median(prediction.error for prediction in group)
            console.print(f"quiet, from the 51st on, {label}: {error:.1%} of {len(group)}")


def draw_prediction(title: str, found: Sequence[Prediction], path: Path) -> None:
    """Write the picture as PNG: predicted over actual time, prefill by prefill."""
    figure, axis = plt.subplots(figsize=(10, 4), layout="constrained")
    axis.axhline(1.0, color="grey", linewidth=1)
    for name in dict.fromkeys(prediction.part for prediction in found):
        points = [
            (index, prediction.predicted_s / prediction.actual_s)
            for index, prediction in enumerate(found)
            if prediction.part == name
        ]
        axis.plot(*zip(*points, strict=True), ".", label=name)
    axis.set(xlabel="prefill", ylabel="predicted / actual", yscale="log", title=title)
    axis.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


async def run_prediction(args: argparse.Namespace) -> None:
    """Measure, print, draw and write.

    Raises:
        BenchError: The server cannot be measured.
    """
    console = result_console()
    options = options_of(args, PredictionOptions)
    folder = new_folder(args.out)
    args.prefix_cache = True
    longest = options.max_tokens + options.document_tokens
    log = folder / f"{_SYSTEM}.log"
    async with running_server(_SYSTEM, server_options(args), log, longest) as server:
        found = await measure_prediction(server.endpoint, options)
    title = f"Predictions of {len(found)} prefills, {measured_on([server.description])}"
    document = result_head(title, config_of(args), options.seed) | {
        "server": asdict(server.description),
        "predictions": [asdict(prediction) for prediction in found],
    }
    write_json(folder / "result.json", document)
    draw_prediction(title, found, folder / "prediction.png")
    print_prediction(title, found, console)
    console.print(f"written: {folder}")


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides which prompts are sent."""
    add_option_fields(parser, "prompts", PredictionOptions())
