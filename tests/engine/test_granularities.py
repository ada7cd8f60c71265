"""Coarser boundaries, for comparisons: fewer of them, and the same answers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.engine.engine import Answer, Engine, EngineSettings, Request, in_child
from tests.engine.models import FAMILIES, build_model
from tests.engine.prompts import prompt
from tests.engine.scripts import InTurns, Undisturbed

pytestmark = pytest.mark.server

LENGTHS = (150, 40)
BOUNDARIES_PER_LAYER = {"half-layer": 2, "layer": 1}


@dataclass(frozen=True)
class GranularityRun:
    """What one engine did with the same prompts, alone and in turns."""

    num_boundaries: int
    num_suspensions: int
    alone: list[Answer]
    in_turns: list[Answer]


def serve_twice(granularity: str, folder: Path) -> GranularityRun:
    """Serve the prompts undisturbed, then interrupted at every boundary; run in a child."""
    flags = ("--max-total-tokens", "1024", "--disable-radix-cache")
    flags += ("--flowprefill-granularity", granularity)
    engine = Engine(EngineSettings(str(build_model("llama", folder)), flags))
    answers = []
    for name, script in (("alone", Undisturbed), ("turns", InTurns)):
        requests = [Request(f"{name}-{n}", prompt(n, seed=n), 3) for n in LENGTHS]
        num_boundaries, num_suspensions = engine.num_boundaries, engine.num_suspensions
        engine.serve(script([(request,) for request in requests]))
        answers.append([engine.answers[request.request_id] for request in requests])
    return GranularityRun(
        engine.num_boundaries - num_boundaries,
        engine.num_suspensions - num_suspensions,
        *answers,
    )


@pytest.mark.parametrize("granularity", BOUNDARIES_PER_LAYER)
def test_boundaries_lie_where_the_granularity_says(granularity, model_folder):
    """Two a layer or one, every one a place to stop, with every logit as undisturbed."""
    run = in_child(serve_twice, granularity, model_folder)
    expected = len(LENGTHS) * BOUNDARIES_PER_LAYER[granularity] * FAMILIES["llama"].num_layers
    assert run.num_boundaries == run.num_suspensions == expected
    for alone, in_turns in zip(run.alone, run.in_turns, strict=True):
        assert in_turns.tokens == alone.tokens
        np.testing.assert_array_equal(
            in_turns.prefills[0].next_token_logits, alone.prefills[0].next_token_logits
        )
