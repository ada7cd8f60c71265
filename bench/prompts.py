"""Prompts of random token ids that no prefix cache can help with."""

import itertools

import numpy as np

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
        self._rng = np.random.default_rng(seed)
        first_ids = self._rng.permutation(np.arange(_FIRST_TOKEN_ID, _END_TOKEN_ID))
        self._first_ids = itertools.cycle(first_ids.tolist())

    def draw(self, num_tokens: int) -> list[int]:
        """Return ``num_tokens`` token ids."""
        rest = self._rng.integers(_FIRST_TOKEN_ID, _END_TOKEN_ID, num_tokens - 1)
        return [next(self._first_ids), *rest.tolist()]
