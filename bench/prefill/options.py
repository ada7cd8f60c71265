"""What ``prefill`` sends, and how the command line says so."""

import argparse
from dataclasses import dataclass

from bench.arguments import (
    add_server_arguments,
    options_of,
    positive_int,
    positive_lengths,
    some_of,
)

PARTS = ("lengths", "extension", "chunks")
DEFAULT_SYSTEMS = ("flowprefill", "stock", "stock-tuned", "stock-kernel", "vllm")


@dataclass(frozen=True, slots=True)
class PrefillCase:
    """One kind of prompt.

    Attributes:
        num_tokens: To compute.
        num_cached_tokens: Before those, which the prefix cache holds.
        chunk_tokens: Most tokens that the server runs in one forward pass; None: its default.
    """

    num_tokens: int
    num_cached_tokens: int = 0
    chunk_tokens: int | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the whole prompt."""
        return self.num_tokens + self.num_cached_tokens

    @property
    def label(self) -> str:
        """Name it in a table."""
        cached = f" after {self.num_cached_tokens} cached" if self.num_cached_tokens else ""
        chunks = f" in chunks of {self.chunk_tokens}" if self.chunk_tokens else ""
        return f"{self.num_tokens}{cached}{chunks}"


@dataclass(frozen=True, slots=True)
class PrefillOptions:
    """What is sent.

    Attributes:
        lengths: Of prompts with nothing cached.
        prefix_tokens: Cached before the extension. Caches hold whole blocks; 7,040 is a multiple
            of vLLM's 128 on a CPU.
        extension_tokens: New tokens after those.
        chunked_tokens: Length of the prompt that runs in chunks.
        chunk_tokens: Of that many tokens each.
        rounds: How often each system is started and asked.
        max_prompts: At most this many prompts of a kind in each round,
        tokens_of_a_kind: and as many as have this many tokens together, at least one.
        parts: Of ``PARTS``.
        seed: Of the prompts.
    """

    lengths: tuple[int, ...] = (32, 128, 256, 512, 1024, 2048, 4096, 8000)
    prefix_tokens: int = 7040
    extension_tokens: int = 256
    chunked_tokens: int = 4000
    chunk_tokens: int = 512
    rounds: int = 3
    max_prompts: int = 10
    tokens_of_a_kind: int = 8192
    parts: tuple[str, ...] = PARTS
    seed: int = 0

    def cases_by_chunk(self) -> dict[int | None, list[PrefillCase]]:
        """Return what to measure, by the chunk length with which a server has to be started."""
        cases = []
        if "lengths" in self.parts:
            cases += [PrefillCase(n) for n in self.lengths]
        if "extension" in self.parts:
            cases.append(PrefillCase(self.extension_tokens, self.prefix_tokens))
        if "chunks" in self.parts:
            cases.append(PrefillCase(self.chunked_tokens, chunk_tokens=self.chunk_tokens))
        chunks = dict.fromkeys(case.chunk_tokens for case in cases)
        return {n: [case for case in cases if case.chunk_tokens == n] for n in chunks}

    def num_prompts(self, case: PrefillCase) -> int:
        """Return how many prompts of a kind are timed in each round: more of short ones."""
        return max(1, min(self.max_prompts, self.tokens_of_a_kind // case.num_tokens))


def add_prefill_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides what is sent, and to which servers."""
    defaults = PrefillOptions()
    group = parser.add_argument_group("prefill")
    group.add_argument("--parts", type=some_of(PARTS), default=PARTS, help=f"of {','.join(PARTS)}")
    group.add_argument("--lengths", type=positive_lengths, default=defaults.lengths)
    for name, help_text in _NUMBERS.items():
        flag = "--" + name.replace("_", "-")
        group.add_argument(
            flag,
            type=positive_int,
            default=getattr(defaults, name),
            help=f"{help_text} (%(default)s)",
        )
    group.add_argument("--seed", type=int, default=defaults.seed, help="of the prompts")
    add_server_arguments(parser)
    # The caches are on, as all engines have them by default; only the extension can hit.
    parser.set_defaults(systems=DEFAULT_SYSTEMS, prefix_cache=True)


_NUMBERS = {
    "rounds": "how often each system is started and asked",
    "prefix_tokens": "cached tokens of the extension",
    "extension_tokens": "new tokens after those",
    "chunked_tokens": "length of the prompt that runs in chunks",
    "chunk_tokens": "length of the chunks",
    "max_prompts": "most prompts of a kind in each round",
    "tokens_of_a_kind": "and together about this many tokens",
}


def prefill_options(args: argparse.Namespace) -> PrefillOptions:
    """Collect the options."""
    return options_of(args, PrefillOptions)
