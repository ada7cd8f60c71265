"""Throughput tax: what preemption costs while nobody is preempted.

All systems run at once and idle but for the one that is asked; they are asked in turn, in an order
drawn anew for each round, so that a machine that slows down slows all of them. Each answer is
compared with the reference's of the same round. Prompts are sent one by one: with an idle queue
the time to the first token is the time of the prefill.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import aiohttp

from bench.client import encode_request, http_session, timed_generate
from bench.errors import ServerError
from bench.prompts import UniquePrompts

_LIMIT_S = 900.0
_SLO_S = 3600.0  # never doomed, whatever the machine


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
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Prompts of each round as length and number."""
        return ((self.long_tokens, 1), (self.short_tokens, self.num_short))


@dataclass(frozen=True, slots=True)
class TaxSample:
    """One block of equal prompts, sent one after the other.

    Attributes:
        system: Who was asked.
        round_index: In which round.
        num_tokens: Length of each prompt.
        num_prompts: How many.
        seconds: Sum of their TTFTs.
    """

    system: str
    round_index: int
    num_tokens: int
    num_prompts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TaxSummary:
    """One system's rounds with prompts of one length.

    Attributes:
        system: Its name.
        num_tokens: Length of the prompts.
        tokens_per_s: Median over rounds of prefilled tokens a second.
        tokens_per_s_min: Of the slowest round.
        tokens_per_s_max: Of the fastest round.
        ratio: Median over rounds of its time over the reference's; 1 is no tax.
        ratio_min: The smallest.
        ratio_max: The largest.
    """

    system: str
    num_tokens: int
    tokens_per_s: float
    tokens_per_s_min: float
    tokens_per_s_max: float
    ratio: float
    ratio_min: float
    ratio_max: float


async def measure_tax(
    urls: Mapping[str, str], options: TaxOptions, on_block: Callable[[], None] = lambda: None
) -> list[TaxSample]:
    """Ask every system in every round; the servers are warm and idle.

    Args:
        urls: Base address by system.
        options: What is sent.
        on_block: Called after each block.

    Raises:
        ServerError: A prompt failed.
    """
    order = random.Random(options.seed)
    samples = []
    async with http_session() as session:
        for round_index in range(options.rounds):
            for num_tokens, num_prompts in options.blocks:
                for system in order.sample(list(urls), len(urls)):
                    prompts = UniquePrompts(options.seed + round_index)  # equal for all systems
                    seconds = sum(
                        [
                            await _ttft_s(session, urls[system], prompts.draw(num_tokens))
                            for _ in range(num_prompts)
                        ]
                    )
                    samples.append(TaxSample(system, round_index, num_tokens, num_prompts, seconds))
                    on_block()
    return samples


async def _ttft_s(session: aiohttp.ClientSession, url: str, prompt: Sequence[int]) -> float:
    request = encode_request(prompt, num_output_tokens=1, slo_ttft_s=_SLO_S)
    timing = await timed_generate(session, url, request, _LIMIT_S)
    if timing.error is not None or timing.ttft_s is None:
        raise ServerError(f"a prompt of {len(prompt)} tokens failed at {url}: {timing.error}")
    return timing.ttft_s


def summarise_tax(samples: Sequence[TaxSample], reference: str) -> list[TaxSummary]:
    """Compare each system with the reference, round by round.

    Args:
        samples: Of all systems, the reference among them.
        reference: Whose times are 1.
    """
    seconds = {(s.system, s.num_tokens, s.round_index): s.seconds for s in samples}
    groups: dict[tuple[int, str], list[TaxSample]] = {}
    for sample in samples:
        groups.setdefault((sample.num_tokens, sample.system), []).append(sample)
    summaries = []
    for (num_tokens, system), group in groups.items():
        speeds = [s.num_tokens * s.num_prompts / s.seconds for s in group]
        ratios = [s.seconds / seconds[reference, num_tokens, s.round_index] for s in group]
        summaries.append(
            TaxSummary(
                system=system,
                num_tokens=num_tokens,
                tokens_per_s=median(speeds),
                tokens_per_s_min=min(speeds),
                tokens_per_s_max=max(speeds),
                ratio=median(ratios),
                ratio_min=min(ratios),
                ratio_max=max(ratios),
            )
        )
    return sorted(summaries, key=lambda s: (-s.num_tokens, s.system))
