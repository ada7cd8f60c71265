"""Prompts cannot share a prefix."""

from bench.workloads.prompts import UniquePrompts


def test_no_two_prompts_begin_alike():
    """Each prompt has its own first token, so a prefix cache has nothing to hit."""
    prompts = UniquePrompts(seed=0)
    drawn = [prompts.draw(4) for _ in range(2000)]
    assert len({prompt[0] for prompt in drawn}) == len(drawn)
    assert all(len(prompt) == 4 for prompt in drawn)


def test_same_seed_draws_same_prompts():
    """Every system of a comparison sees the same tokens."""
    first, second, other = UniquePrompts(1), UniquePrompts(1), UniquePrompts(2)
    drawn = [first.draw(n) for n in (1, 5, 9)]
    assert drawn == [second.draw(n) for n in (1, 5, 9)]
    assert drawn != [other.draw(n) for n in (1, 5, 9)]
