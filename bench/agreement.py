"""``agreement``: do two systems give the same greedy answers?

The same prompts go to each, one at a time, so that nothing is batched differently. Where answers
part, the first token that differs is looked at: how much more likely, in each system's own eyes,
was its choice than the other's? Rounding decides between tokens that are about as likely; a gap
beyond it is a fault of somebody's arithmetic. Systems are SGLang's, with or without FlowPrefill.
"""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import aiohttp
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.arguments import add_option_fields, config_of, options_of, server_options
from bench.comparison.report import measured_on, new_folder, result_console, result_head, write_json
from bench.errors import ServerError
from bench.results.progress import progress_bar
from bench.systems.client import http_session
from bench.systems.engine import Endpoint
from bench.systems.servers import ServerDescription, running_server
from bench.workloads.prompts import UniquePrompts

_LIMIT_S = 600.0
_NUM_CANDIDATES = 5


@dataclass(frozen=True, slots=True)
class AgreementOptions:
    """What is asked.

    Attributes:
        num_prompts: How many prompts.
        min_tokens: Length of the shortest.
        max_tokens: Length of the longest; lengths are log-uniform.
        output_tokens: Greedy tokens of each answer.
        tie: Difference of log-probabilities up to which two tokens count as equally likely.
        seed: Of lengths and prompts.
    """

    num_prompts: int = 100
    min_tokens: int = 16
    max_tokens: int = 1500
    output_tokens: int = 12
    tie: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One greedy answer.

    Attributes:
        tokens: As generated.
        candidates: For each of them, the log-probabilities of the likeliest tokens by token id.
    """

    tokens: list[int]
    candidates: list[dict[int, float]]


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two answers to one prompt part.

    Attributes:
        prompt: Its number.
        position: Of the first token that differs.
        gap: By how much one system at least prefers its own choice: the smaller of the two
            differences of log-probability; infinite if the other's is not among the candidates.
    """

    prompt: int
    position: int
    gap: float


def partings_of(ours: Sequence[Answer], theirs: Sequence[Answer]) -> list[Parting]:
    """Return where the answers of two systems part, in order of prompts."""
    found = []
    for prompt, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        pairs = enumerate(zip(a.tokens, b.tokens, strict=True))
        position = next((i for i, (x, y) in pairs if x != y), None)
        if position is not None:
            found.append(Parting(prompt, position, _gap(a, b, position)))
    return found


def _gap(a: Answer, b: Answer, position: int) -> float:
    x, y = a.tokens[position], b.tokens[position]
    return min(_preference(a.candidates[position], x, y), _preference(b.candidates[position], y, x))


def _preference(candidates: Mapping[int, float], chosen: int, other: int) -> float:
    return candidates[chosen] - candidates.get(other, float("-inf"))


async def ask_all(server: Endpoint, name: str, options: AgreementOptions) -> list[Answer]:
    """Ask every prompt, one after the other.

    Raises:
        ServerError: One of them fails.
    """
    rng = np.random.default_rng(options.seed)
    span = np.log(options.min_tokens), np.log(options.max_tokens)
    lengths = np.exp(rng.uniform(*span, options.num_prompts)).astype(int)
    prompts = UniquePrompts(options.seed)
    answers = []
    with progress_bar() as progress:
        async with http_session() as session:
            for num_tokens in progress.track(lengths.tolist(), description=name):
                prompt = prompts.draw(num_tokens)
                answers.append(await _ask(session, server, prompt, options.output_tokens))
    return answers


async def _ask(
    session: aiohttp.ClientSession, server: Endpoint, prompt: list[int], num_output_tokens: int
) -> Answer:
    sampling = {"max_new_tokens": num_output_tokens, "temperature": 0.0, "ignore_eos": True}
    body = {
        "input_ids": prompt,
        "sampling_params": sampling,
        "return_logprob": True,
        "top_logprobs_num": _NUM_CANDIDATES,
    }
    try:
        async with (
            asyncio.timeout(_LIMIT_S),
            session.post(f"{server.url}/generate", json=body) as response,
        ):
            response.raise_for_status()
            return _answer(await response.json())
    except (TimeoutError, aiohttp.ClientError) as error:
        raise ServerError(f"a prompt of {len(prompt)} tokens failed: {error}") from error


def _answer(reply: Mapping[str, Any]) -> Answer:
    """Read SGLang's reply: candidates are ``[log-probability, token id, text]``."""
    top = reply["meta_info"]["output_top_logprobs"]
    candidates = [{token: value for value, token, _ in position} for position in top]
    return Answer(list(reply["output_ids"]), candidates)


async def run_agreement(args: argparse.Namespace) -> None:
    """Ask each system in turn, compare all pairs, print and write.

    Raises:
        BenchError: A system cannot be asked.
    """
    console = result_console()
    options = options_of(args, AgreementOptions)
    folder = new_folder(args.out)
    answers: dict[str, list[Answer]] = {}
    servers: dict[str, ServerDescription] = {}
    for name in args.systems:
        console.print(f"{name}: starting, then {options.num_prompts} prompts")
        log = folder / f"{name}.log"
        async with running_server(name, server_options(args), log, options.max_tokens) as server:
            answers[name] = await ask_all(server.endpoint, name, options)
        servers[name] = server.description
    title = (
        f"Greedy answers of {options.output_tokens} tokens to {options.num_prompts} prompts of "
        f"{options.min_tokens} to {options.max_tokens} tokens, {measured_on(servers.values())}"
    )
    pairs = {f"{a}, {b}": partings_of(answers[a], answers[b]) for a, b in combinations(answers, 2)}
    document = result_head(title, config_of(args), options.seed) | {
        "servers": {name: asdict(server) for name, server in servers.items()},
        "tokens": {name: [answer.tokens for answer in given] for name, given in answers.items()},
        "partings": {
            pair: [asdict(parting) for parting in partings if np.isfinite(parting.gap)]
            for pair, partings in pairs.items()
        },
    }
    write_json(folder / "result.json", document)
    print_agreement(title, pairs, options, console)
    console.print(f"written: {folder}")


def print_agreement(
    title: str,
    pairs: Mapping[str, Sequence[Parting]],
    options: AgreementOptions,
    console: Console,
) -> None:
    """Print, for each pair of systems, how many answers are equal and why others are not."""
    table = Table(title=title)
    for heading in ("systems", "equal", "part at a tie", "part beyond", "largest gap"):
        table.add_column(heading, justify="left" if heading == "systems" else "right")
    for pair, partings in pairs.items():
        num_ties = sum(parting.gap <= options.tie for parting in partings)
        table.add_row(
            pair,
            str(options.num_prompts - len(partings)),
            str(num_ties),
            str(len(partings) - num_ties),
            f"{max((parting.gap for parting in partings), default=0.0):.3f}",
        )
    console.print(table)
    console.print(f"a tie: log-probabilities differ by at most {options.tie:g}")


def add_agreement_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides which prompts are asked."""
    add_option_fields(parser, "prompts", AgreementOptions())
