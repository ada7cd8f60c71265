"""Prompts of the engine tests: token ids, drawn from seeds."""

import random

from tests.engine.models import VOCAB_SIZE

_FIRST_PLAIN_TOKEN = 16


def prompt(num_tokens: int, seed: int) -> tuple[int, ...]:
    """Draw a prompt that shares no prefix worth mentioning with one of another seed."""
    rng = random.Random(seed)
    return tuple(rng.randrange(_FIRST_PLAIN_TOKEN, VOCAB_SIZE) for _ in range(num_tokens))
