"""Suspended at every boundary, every model family computes what it computes undisturbed."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tests.engine.engine import Answer, Engine, EngineSettings, Request, in_child
from tests.engine.models import FAMILIES, build_model
from tests.engine.prompts import prompt
from tests.engine.scripts import InTurns, Undisturbed

pytestmark = pytest.mark.server

SHORT, LONG = 20, 150
GROUPS = ((LONG,), (7, 33), (64,), (1, 90))
"""Prompt lengths, by batch."""

NUM_OUTPUT_TOKENS = 12
FLAGS = ("--max-total-tokens", "2048", "--disable-radix-cache")
TILED = ("--flowprefill-max-operator-ms", "0.001")
"""Operators over more rows than the smallest tile run in tiles, boundaries between."""

CHUNK_TOKENS = 80
CHUNKED = (*TILED, "--flowprefill-max-chunk-tokens", str(CHUNK_TOKENS))
"""Two of the batches need two forward passes."""

RUNS = {family: (family, TILED) for family in FAMILIES} | {
    f"{family}-chunked": (family, CHUNKED) for family in ("llama", "mixtral", "gemma3")
}


@dataclass(frozen=True)
class FamilyRun:
    """What one family answered, undisturbed and in turns."""

    undisturbed: dict[str, Answer]
    in_turns: dict[str, Answer]
    num_boundaries_short: int
    num_boundaries_long: int
    num_suspensions: int
    num_boundaries: int
    num_switches: int
    num_decode_steps_inside: int
    max_batches: int


def groups(name: str) -> tuple[tuple[Request, ...], ...]:
    """Return the test's requests under ids of their own."""
    return tuple(
        tuple(
            Request(f"{name}-{n:03}", prompt(n, seed=n), NUM_OUTPUT_TOKENS, with_logprobs=True)
            for n in lengths
        )
        for lengths in GROUPS
    )


def serve_family(family: str, flags: tuple[str, ...], folder: Path) -> FamilyRun:
    """Serve the same batches twice with one engine; run in a child."""
    path = build_model(family, folder)
    engine = Engine(EngineSettings(str(path), FLAGS + flags))
    num_boundaries_short = _count_boundaries(engine, SHORT)
    num_boundaries_long = _count_boundaries(engine, LONG)
    engine.serve(Undisturbed(groups("undisturbed")))
    num_boundaries, num_suspensions = engine.num_boundaries, engine.num_suspensions
    script = InTurns(groups("turns"))
    engine.serve(script)
    return FamilyRun(
        undisturbed=_answers_of(engine, "undisturbed"),
        in_turns=_answers_of(engine, "turns"),
        num_boundaries_short=num_boundaries_short,
        num_boundaries_long=num_boundaries_long,
        num_suspensions=engine.num_suspensions - num_suspensions,
        num_boundaries=engine.num_boundaries - num_boundaries,
        num_switches=script.num_switches,
        num_decode_steps_inside=script.num_decode_steps_inside,
        max_batches=script.max_batches,
    )


def _count_boundaries(engine: Engine, num_tokens: int) -> int:
    before = engine.num_boundaries
    engine.serve(Undisturbed([(Request(f"{num_tokens} tokens", prompt(num_tokens, 1), 1),)]))
    return engine.num_boundaries - before


def _answers_of(engine: Engine, name: str) -> dict[str, Answer]:
    beginning = f"{name}-"
    return {
        request_id.removeprefix(beginning): answer
        for request_id, answer in engine.answers.items()
        if request_id.startswith(beginning)
    }


@pytest.fixture(scope="module", params=list(RUNS))
def run(request, model_folder) -> FamilyRun:
    """One family's answers."""
    return in_child(serve_family, *RUNS[request.param], model_folder)


def test_every_prefill_was_suspended_at_every_boundary_among_others(run):
    """The disturbed run was disturbed: all boundaries, several prefills, decode steps between."""
    assert run.num_suspensions == run.num_boundaries
    assert run.num_switches > run.num_boundaries / 2
    assert run.max_batches == len(GROUPS)
    assert run.num_decode_steps_inside >= 3


def test_next_token_logits_are_bitwise_equal(run):
    """Every logit of the whole vocabulary after each prompt, in float32."""
    for request_id, expected in run.undisturbed.items():
        found = run.in_turns[request_id]
        assert len(expected.prefills) == len(found.prefills) == 1
        np.testing.assert_array_equal(
            found.prefills[0].next_token_logits, expected.prefills[0].next_token_logits
        )


def test_input_logprobs_and_greedy_tokens_are_equal(run):
    """Log-probabilities of all prompt tokens bit by bit, and the tokens generated from there."""
    for request_id, expected in run.undisturbed.items():
        found = run.in_turns[request_id]
        assert len(expected.input_logprobs) == int(request_id) - 1
        assert found.input_logprobs == expected.input_logprobs
        assert found.output_logprobs[0] == expected.output_logprobs[0]
        assert len(expected.tokens) == NUM_OUTPUT_TOKENS
        assert found.tokens == expected.tokens


def test_different_prompts_have_different_logits(run):
    """The comparison could fail: no two prompts of a family look alike to the model."""
    logits = [answer.prefills[0].next_token_logits for answer in run.undisturbed.values()]
    for one, other in combinations(logits, 2):
        assert np.abs(one - other).max() > 0.1
    assert all(np.isfinite(row).all() and row.std() > 0.1 for row in logits)


def test_at_least_five_boundaries_fire_in_every_layer(run, request):
    """A family is preemptible at operator level, not merely by layer; long operators in tiles."""
    family, _ = RUNS[request.node.callspec.params["run"]]
    assert run.num_boundaries_short >= 5 * FAMILIES[family].num_layers
    assert run.num_boundaries_long > run.num_boundaries_short


def test_prompts_over_the_chunk_limit_take_several_forward_passes(run, request):
    """Where chunks are asked for, the runs compared are runs in chunks."""
    _, flags = RUNS[request.node.callspec.params["run"]]
    expected = CHUNK_TOKENS if flags is CHUNKED else 0
    for answers in (run.undisturbed, run.in_turns):
        assert answers[f"{LONG}"].prefills[0].num_before == expected
