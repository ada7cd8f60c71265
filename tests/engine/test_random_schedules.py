"""Whatever is interrupted, resumed, aborted and evicted when, answers are those of a quiet server.

An episode is a few requests on one warm engine, everything about them drawn from its seed. The KV
pool is small, so that requests wait for memory, cached prefixes are evicted, prefills restarted and
decoding requests retracted. After each episode SGLang's leak checks run, and no lock may be left.
Half of the blocks cut prompts into chunks; in half of the episodes FlowPrefill's own policy decides
between random interruptions, in the others the dice decide.
"""

import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.engine.engine import Answer, Engine, EngineSettings, Request, in_child
from tests.engine.models import build_model
from tests.engine.prompts import prompt
from tests.engine.scripts import RandomEpisode, Undisturbed

pytestmark = pytest.mark.server

NUM_EPISODES = int(os.environ.get("RANDOM_SCHEDULES", "500"))
"""``RANDOM_SCHEDULES=10000 pytest -m server tests/engine/test_random_schedules.py`` takes long.
A failure names its seed; the block that holds it fails alone as well (``-k seeds-from-...``)."""

EPISODES_PER_BLOCK = 125
VARIANTS = ((230, 8192), (480, 48), (230, 32), (480, 8192))
"""Tokens of the KV pool and of a chunk, by block in turns. 230 hold just one long prompt."""

MAX_OUTPUT_TOKENS = 12

MAX_LOGIT_DIFFERENCE = 1e-4
"""For a prefill that shared its batch, or its prompt with the prefix cache: matrices of other
shapes round differently. Logits are of order 10, so this is some hundred units in the last place.
A prefill that computed its whole prompt alone must match its reference bit by bit."""

MIN_TOP_GAP = 1e-3
"""A reference token must win by more than that difference, or equal tokens would be luck."""

RARE = ("aborted in or before prefill", "prefix hits", "retractions", "bitwise compared")
RARE += ("control messages",)
"""What every block must have seen, or it has proved less than it says."""

_SHARED_PREFIXES = (prompt(40, 101), prompt(90, 102), prompt(150, 103))


def _corpus() -> list[tuple[int, ...]]:
    """Prompts of 1 to 200 tokens; two in three share one of three prefixes, or are one."""
    rng = random.Random(7)
    prompts = [*_SHARED_PREFIXES, prompt(1, 104), prompt(2, 107), prompt(200, 106)]
    for seed in range(200, 242):
        prefix = rng.choice((*_SHARED_PREFIXES, ()))
        prompts.append(prefix[: rng.choice((40, 90, 150))] + prompt(rng.randint(1, 50), seed))
    return prompts


CORPUS = _corpus()


@dataclass
class Reference:
    """What one prompt gives on a quiet engine without prefix cache."""

    tokens: list[int]
    next_token_logits: np.ndarray
    smallest_top_gap: float


def reference_answers(folder: Path) -> list[Reference]:
    """Serve every prompt alone; run in a child."""
    path = build_model("llama", folder, num_layers=2)
    engine = Engine(
        EngineSettings(str(path), ("--max-total-tokens", "1024", "--disable-radix-cache"))
    )
    requests = [Request(f"{i:03}", ids, MAX_OUTPUT_TOKENS) for i, ids in enumerate(CORPUS)]
    engine.serve(Undisturbed([(request,) for request in requests]))
    answers = [engine.answers[request.request_id] for request in requests]
    return [
        Reference(a.tokens, a.prefills[0].next_token_logits, a.smallest_top_gap) for a in answers
    ]


def run_episodes(
    folder: Path, seeds: range, variant: tuple[int, int], references: list[Reference]
) -> Counter[str]:
    """Run one episode for each seed on one engine; run in a child."""
    path = build_model("llama", folder, num_layers=2)
    num_pool_tokens, num_chunk_tokens = variant
    flags = ("--max-total-tokens", str(num_pool_tokens), "--max-running-requests", "8")
    flags += ("--flowprefill-max-chunk-tokens", str(num_chunk_tokens))
    engine = Engine(EngineSettings(str(path), flags, overcommits=True))
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            _run_episode(engine, seed, references, counts)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    for name in ("num_preemptions", "num_decode_steps", "num_prefills", "num_cancelled"):
        counts[name] = engine.statistics()[name]
    counts["num_boundaries"] = engine.num_boundaries
    counts["num_suspensions"] = engine.num_suspensions
    return counts


def _run_episode(
    engine: Engine, seed: int, references: list[Reference], counts: Counter[str]
) -> None:
    rng = random.Random(seed)
    if rng.random() < 0.1:
        engine.flush_cache()
    chosen = {f"{seed}.{i}": rng.randrange(len(CORPUS)) for i in range(rng.randint(2, 6))}
    requests = [
        Request(
            rid,
            CORPUS[index],
            rng.choice((1, 2, 3, MAX_OUTPUT_TOKENS)),
            ttft_slo_ms=rng.choice((200.0, 1000.0, 5000.0)),
            with_logprobs=rng.random() < 0.2,
        )
        for rid, index in chosen.items()
    ]
    episode = RandomEpisode(rng, requests, follows_policy=rng.random() < 0.5)
    engine.answers.clear()
    engine.serve(episode)
    assert engine.num_locked_tokens == 0, "a lock on the prefix cache is left"
    for request in requests:
        answer = engine.answers[request.request_id]
        is_aborted = request.request_id in episode.aborted
        _check(request, answer, references[chosen[request.request_id]], is_aborted, counts)
    counts["episodes"] += 1
    counts["requests"] += len(requests)
    counts["abort messages"] += len(episode.aborted)
    counts["dropped for memory or by dice"] += episode.num_dropped
    counts["control messages"] += episode.num_control_messages


def _check(
    request: Request,
    answer: Answer,
    reference: Reference,
    is_aborted: bool,
    counts: Counter[str],
) -> None:
    assert answer.num_final_messages == 1, f"{request.request_id} ended more than once"
    expected = reference.tokens[: request.num_output_tokens]
    if answer.finish_type == "abort":
        assert is_aborted, f"{request.request_id} was aborted without being asked to"
        assert answer.tokens == expected[: len(answer.tokens)]
        counts["aborted"] += 1
        counts["aborted in or before prefill"] += not answer.tokens
    else:
        assert answer.tokens == expected, f"{request.request_id}: {answer.tokens} != {expected}"
        counts["finished"] += 1
    counts["retractions"] += answer.num_retractions
    for prefill in answer.prefills[:1]:  # later ones follow a retraction: longer prompts
        is_alone = prefill.num_before == 0 and prefill.num_requests == 1
        is_same_work = is_alone and not request.with_logprobs  # which multiply more rows at once
        difference = np.abs(prefill.next_token_logits - reference.next_token_logits).max()
        allowed = 0.0 if is_same_work else MAX_LOGIT_DIFFERENCE
        assert difference <= allowed, f"{request.request_id} {is_same_work} {difference}: {prefill}"
        counts["bitwise compared"] += is_same_work
        counts["prefix hits"] += answer.num_cached > 0
        counts["in a batch of several"] += prefill.num_requests > 1


@pytest.fixture(scope="module")
def references(model_folder) -> list[Reference]:
    """Answers of a quiet engine."""
    return in_child(reference_answers, model_folder)


def test_references_tell_prompts_apart(references):
    """Equal tokens mean something: prompts answer differently and no token is a near tie."""
    assert len({tuple(reference.tokens) for reference in references}) == len(CORPUS)
    assert min(reference.smallest_top_gap for reference in references) > MIN_TOP_GAP


@pytest.mark.parametrize(
    "first_seed", range(0, NUM_EPISODES, EPISODES_PER_BLOCK), ids=lambda seed: f"seeds-from-{seed}"
)
def test_random_schedules_answer_as_a_quiet_server(first_seed, references, model_folder):
    """Tokens are exact, logits within the stated bound, nothing leaks, everybody is answered."""
    seeds = range(first_seed, first_seed + EPISODES_PER_BLOCK)
    variant = VARIANTS[first_seed // EPISODES_PER_BLOCK % len(VARIANTS)]
    counts = in_child(run_episodes, model_folder, seeds, variant, references)
    print(dict(counts))
    assert counts["episodes"] == EPISODES_PER_BLOCK
    assert all(counts[name] > 0 for name in RARE)
