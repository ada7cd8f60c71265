"""``prefill``: how long does one prompt take on an idle server, by its length?

One server runs at a time, so that none takes processor time or memory from another. Each round
starts every system once more and asks it for the same prompts; every other round goes backwards
through the systems, so that a machine that slows down favours nobody. Answers are compared with
those of the first system in the same round.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from bench.arguments import config_of, server_options
from bench.comparison.report import new_folder, result_console
from bench.prefill.measuring import Prefills
from bench.prefill.options import PrefillCase, PrefillOptions, prefill_options
from bench.prefill.report import Report
from bench.results.progress import progress_bar
from bench.systems.client import http_session
from bench.systems.engine import ServerOptions
from bench.systems.named import plan_launch, system_named
from bench.systems.servers import free_port, running_server
from bench.workloads.prompts import UniquePrompts


async def run_prefill(args: argparse.Namespace) -> None:
    """Measure each system in each round; print, and write what is known after each.

    Raises:
        BenchError: A system cannot be measured; results of those before it are kept.
    """
    options = prefill_options(args)
    shared = server_options(args)
    for name in args.systems:
        plan_launch(name, shared, free_port())  # what is not installed shall not show at the end
    console = result_console()
    folder = new_folder(args.out)
    report = Report(config_of(args) | asdict(options), options, args.systems, folder)
    with progress_bar() as progress:
        total = len(args.systems) * options.rounds * _num_prompts(options)
        task = progress.add_task("", total=total)
        for round_index in range(options.rounds):
            systems = args.systems[:: -1 if round_index % 2 else 1]
            for chunk_tokens, cases in options.cases_by_chunk().items():
                for name in systems:
                    told = f"round {round_index + 1}/{options.rounds}, {name}"
                    progress.update(task, description=told)
                    await _measure(
                        name,
                        _with_chunks(name, shared, chunk_tokens),
                        cases,
                        report,
                        round_index=round_index,
                        on_prompt=lambda: progress.advance(task),
                    )
    report.print(console)
    console.print(f"written: {folder}")


def _num_prompts(options: PrefillOptions) -> int:
    by_chunk = options.cases_by_chunk().values()
    return sum(options.num_prompts(case) for cases in by_chunk for case in cases)


def _with_chunks(name: str, shared: ServerOptions, chunk_tokens: int | None) -> ServerOptions:
    if chunk_tokens is None:
        return shared
    flag = system_named(name).engine.chunk_flag
    return replace(shared, flags=(*shared.flags, flag, str(chunk_tokens)))


async def _measure(
    name: str,
    shared: ServerOptions,
    cases: Sequence[PrefillCase],
    report: Report,
    *,
    round_index: int,
    on_prompt: Callable[[], None],
) -> None:
    chunk_tokens = cases[0].chunk_tokens
    started_as = name if chunk_tokens is None else f"{name}-{chunk_tokens}"
    log = report.folder / f"{started_as}-{round_index}.log"
    longest = max(case.num_prompt_tokens for case in cases)
    options = report.options
    async with running_server(name, shared, log, longest) as server, http_session() as session:
        prompts = UniquePrompts(options.seed + round_index)
        prefills = Prefills(session, server.endpoint, prompts, on_prompt)
        samples = [
            await prefills.measure(name, round_index, case, options.num_prompts(case))
            for case in cases
        ]
    report.add(started_as, server.description, samples)
