"""Sends the prompts of one case to one warm, idle server, one by one."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import aiohttp

from bench.errors import ServerError
from bench.prefill.options import PrefillCase
from bench.results.paired import PairedSample
from bench.systems.engine import Endpoint
from bench.systems.idle import prefill_timing
from bench.workloads.prompts import UniquePrompts

# A cache that holds whole blocks or pages lacks a few of the prefix.
_LEAST_CACHED_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class PrefillSample:
    """One case on one system in one round.

    Attributes:
        system: Who was asked.
        round_index: In which round.
        case: What was sent.
        ttfts_s: From send to first token, of each prompt.
        num_cached_tokens: Fewest that a prompt found cached, as the server says.
    """

    system: str
    round_index: int
    case: PrefillCase
    ttfts_s: list[float]
    num_cached_tokens: int

    @property
    def paired(self) -> PairedSample[PrefillCase]:
        """Its median, for comparison."""
        return PairedSample(self.system, self.round_index, self.case, median(self.ttfts_s))


@dataclass(frozen=True, slots=True)
class Prefills:
    """Times prefills on one server.

    Attributes:
        session: Open.
        server: Warm and idle.
        prompts: Equal for all systems of a round.
        on_prompt: Called after each prompt.
    """

    session: aiohttp.ClientSession
    server: Endpoint
    prompts: UniquePrompts
    on_prompt: Callable[[], None]

    async def measure(
        self, system: str, round_index: int, case: PrefillCase, num_prompts: int
    ) -> PrefillSample:
        """Time prompts of one kind.

        Raises:
            ServerError: A prompt failed, or the prefix was not cached.
        """
        prefix: list[int] = []
        if case.num_cached_tokens:
            prefix = self.prompts.draw(case.num_cached_tokens)
            await prefill_timing(self.session, self.server, prefix)
        ttfts_s, num_cached = [], []
        for _ in range(num_prompts):
            prompt = prefix + self.prompts.draw(case.num_tokens)
            timing = await prefill_timing(self.session, self.server, prompt)
            ttfts_s.append(timing.ttft_s)
            num_cached.append(timing.num_cached_tokens or 0)
            self.on_prompt()
        if min(num_cached) < _LEAST_CACHED_SHARE * case.num_cached_tokens:
            raise ServerError(
                f"{system}: only {min(num_cached)} of {case.num_cached_tokens} tokens were cached; "
                "is its prefix cache on, and large enough?"
            )
        return PrefillSample(system, round_index, case, ttfts_s, min(num_cached))
