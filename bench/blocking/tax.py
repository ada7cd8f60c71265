"""Throughput tax: what preemption costs while nobody is preempted.

All systems run at once and idle but for the one that is asked; they are asked in turn, in an order
drawn anew for each round, so that a machine that slows down slows all of them. Prompts are sent
one by one.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.results.paired import PairedSample
from bench.systems.client import http_session
from bench.systems.engine import Endpoint
from bench.systems.idle import prefill_timing
from bench.workloads.prompts import UniquePrompts


@dataclass(frozen=True, slots=True)
class Block:
    """Equal prompts, sent one after the other.

    Attributes:
        num_tokens: Length of each prompt.
        num_prompts: How many.
    """

    num_tokens: int
    num_prompts: int

    @property
    def total_tokens(self) -> int:
        """Of all prompts."""
        return self.num_tokens * self.num_prompts


@dataclass(frozen=True, slots=True)
class TaxOptions:
    """What is sent.

    Attributes:
        rounds: How often each system is asked.
        long_tokens: Length of the long prompt, one in each round.
        short_tokens: Length of the short prompts.
        num_short: Short prompts in each round.
        seed: Of prompts and order.
    """

    rounds: int = 10
    long_tokens: int = 4096
    short_tokens: int = 64
    num_short: int = 10
    seed: int = 0

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Prompts of each round."""
        return (Block(self.long_tokens, 1), Block(self.short_tokens, self.num_short))


async def measure_tax(
    servers: Mapping[str, Endpoint],
    options: TaxOptions,
    on_block: Callable[[], None] = lambda: None,
) -> list[PairedSample[Block]]:
    """Ask every system in every round; the servers are warm and idle.

    Args:
        servers: By system.
        options: What is sent.
        on_block: Called after each block.

    Returns:
        The sum of the TTFTs of each block.

    Raises:
        ServerError: A prompt failed.
    """
    order = random.Random(options.seed)
    samples = []
    async with http_session() as session:
        for round_index in range(options.rounds):
            for block in options.blocks:
                for system in order.sample(list(servers), len(servers)):
                    prompts = UniquePrompts(options.seed + round_index)  # equal for all systems
                    seconds = 0.0
                    for _ in range(block.num_prompts):
                        prompt = prompts.draw(block.num_tokens)
                        seconds += (await prefill_timing(session, servers[system], prompt)).ttft_s
                    samples.append(PairedSample(system, round_index, block, seconds))
                    on_block()
    return samples
