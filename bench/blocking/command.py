"""``blocking``: how long does an urgent request wait for the running prefill to make way?

For each granularity of preemption a server of its own runs, with its timeline on. For each length
of the running prompt it is asked twice: the long prompt alone, whose operators tell what an
arrival at a random moment would wait; and the long prompt with urgent ones sent at random moments,
whose waits are observed. ``waits`` says exactly what is counted. Then, at one length,
urgent prompts follow one another as fast as they are answered: what does a suspension cost the
long prompt beyond the work done in between? Last, ``tax`` compares throughput with an idle queue.
"""

import argparse
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path

from bench.arguments import config_of
from bench.blocking.analysis import analyse
from bench.blocking.long_context import model_with_context
from bench.blocking.options import (
    BlockingOptions,
    blocking_options,
    granularity_flags,
    server_options,
    tax_systems,
)
from bench.blocking.report import Report
from bench.blocking.sending import measure_granularity, require_shared_clock
from bench.blocking.tax import measure_tax
from bench.comparison.report import new_folder, result_console
from bench.results.progress import progress_bar
from bench.systems.engine import ServerOptions
from bench.systems.servers import running_server
from sglang_flowprefill.cpu.embedded_model import embedded_model_path
from sglang_flowprefill.observe.timeline_reader import read_timeline

_DEFAULT_CACHE_TOKENS = 32_768  # KV cache that SGLang gets on a CPU unless told otherwise
_SPARE_CACHE_TOKENS = 1024  # room beside the long prompt and one urgent one
_SPARE_CONTEXT_TOKENS = 64  # SGLang keeps a few of the context to itself


async def run_blocking(args: argparse.Namespace) -> None:
    """Measure each granularity, then the tax; print, and write what is known after each.

    Raises:
        BenchError: A server cannot be measured; results of those before it are kept.
    """
    require_shared_clock()
    options = blocking_options(args)
    console = result_console()
    folder = new_folder(args.out)
    report = Report(config_of(args) | asdict(options), options, folder)
    if "blocking" in options.parts:
        shared = _with_long_context(server_options(args), options)
        for name in options.granularities:
            console.print(f"{name}: starting, then blocking time")
            await _run_granularity(name, shared, options, report)
    if "tax" in options.parts:
        console.print(f"{', '.join(tax_systems(options))}: starting all, then throughput tax")
        await _run_tax(server_options(args), options, report)
    report.print(console)
    console.print(f"written: {folder}")


async def _run_granularity(
    name: str, shared: ServerOptions, options: BlockingOptions, report: Report
) -> None:
    trace = report.folder / f"{name}.trace.json"
    flags = (*granularity_flags(name, options), "--flowprefill-trace", str(trace.resolve()))
    with_flags = replace(shared, flags=(*shared.flags, *flags))
    log = report.folder / f"{name}.log"
    longest = max(*options.lengths, options.switch_tokens)
    async with running_server("flowprefill", with_flags, log, longest) as server:
        with progress_bar() as progress:
            task = progress.add_task(f"{name}: blocking", total=options.num_steps)
            run = await measure_granularity(
                server.endpoint, options, lambda: progress.advance(task)
            )
            progress.update(task, completed=options.num_steps)
    report.add_server(name, server.description)
    report.results[name] = analyse(run, read_timeline(trace))
    report.write()


async def _run_tax(shared: ServerOptions, options: BlockingOptions, report: Report) -> None:
    systems = tax_systems(options)
    async with AsyncExitStack() as servers:
        endpoints = {}
        for name, (system, flags) in systems.items():
            server = await servers.enter_async_context(
                running_server(
                    system,
                    replace(shared, flags=(*shared.flags, *flags)),
                    report.folder / f"tax-{name}.log",
                    options.tax_tokens,
                )
            )
            endpoints[name] = server.endpoint
            report.add_server(f"tax-{name}", server.description)
        with progress_bar() as progress:
            num_blocks = options.tax.rounds * len(options.tax.blocks) * len(endpoints)
            task = progress.add_task("throughput tax", total=num_blocks)
            report.tax_samples = await measure_tax(
                endpoints, options.tax, lambda: progress.advance(task)
            )
    report.write()


def _with_long_context(shared: ServerOptions, options: BlockingOptions) -> ServerOptions:
    """Serve a model, and on a CPU a KV cache, that takes the longest prompt."""
    model_path = shared.model_path or str(embedded_model_path(shared.dtype or "bfloat16"))
    num_tokens = options.num_context_tokens
    flags = shared.flags
    num_cache_tokens = num_tokens + options.urgent_tokens + _SPARE_CACHE_TOKENS
    if shared.device == "cpu" and num_cache_tokens > _DEFAULT_CACHE_TOKENS:
        flags = ("--max-total-tokens", str(num_cache_tokens), *flags)
    model = model_with_context(Path(model_path), num_tokens + _SPARE_CONTEXT_TOKENS)
    return replace(shared, model_path=str(model), flags=flags)
