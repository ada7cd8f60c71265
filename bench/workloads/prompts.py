"""Prompts of random token ids: each new, but for the blocks that they are meant to share."""

import itertools
from collections.abc import Sequence

import numpy as np

from bench.workloads.request import PrefixBlock

# Below every vocabulary that the bench is used with (Llama 2 has the smallest, 32000), above
# the special tokens that sit at its start.
_FIRST_TOKEN_ID = 256
_END_TOKEN_ID = 32_000


class UniquePrompts:
    """Draws prompts, each of which begins with another token than all drawn before it.

    So no two share even a prefix of one token, until the vocabulary is used up after 31,744
    prompts. Prompts of two instances with the same seed are the same.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        first_ids = self._rng.permutation(np.arange(_FIRST_TOKEN_ID, _END_TOKEN_ID))
        self._first_ids = itertools.cycle(first_ids.tolist())

    def draw(self, num_tokens: int, prefix: Sequence[PrefixBlock] = ()) -> list[int]:
        """Return ``num_tokens`` token ids.

        Args:
            num_tokens: Length of the prompt.
            prefix: Blocks that it begins with, at most so long together; what follows them is
                shared with no other prompt.
        """
        shared = [token_id for block in prefix for token_id in self._block(block)]
        if len(shared) >= num_tokens:
            return shared[:num_tokens]
        num_rest = num_tokens - len(shared) - 1
        rest = self._rng.integers(_FIRST_TOKEN_ID, _END_TOKEN_ID, num_rest)
        return [*shared, next(self._first_ids), *rest.tolist()]

    def _block(self, block: PrefixBlock) -> list[int]:
        rng = np.random.default_rng((abs(self._seed), block.block_id))
        # The longest block of one identity begins with all shorter ones.
        return rng.integers(_FIRST_TOKEN_ID, _END_TOKEN_ID, block.num_tokens).tolist()
