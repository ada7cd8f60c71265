"""Called one after the other, a decoder's operators give to the bit what its modules give."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sglang_flowprefill.kernels.cpu.native import load_native

from tests.engine.engine import Answer, Engine, EngineSettings, Request, in_child
from tests.engine.models import build_model
from tests.engine.prompts import prompt
from tests.engine.scripts import InTurns

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(load_native() is None, reason="no compiled kernels here"),
]

GROUPS = ((150,), (7, 33), (1, 90))
"""Prompt lengths, by batch; the second batch finds the beginning of the first in the cache."""


@dataclass(frozen=True)
class Served:
    """What one engine answered, and how often operators ran without their modules."""

    answers: dict[str, Answer]
    num_boundaries: int
    num_suspensions: int
    num_direct: int


def serve(
    family: str,
    folder: Path,
    *,
    dtype: str = "float32",
    flags: tuple[str, ...] = (),
    has_hook: bool = False,
    is_direct: bool = True,
) -> Served:
    """Serve batches in turns, suspended at every boundary; run in a child."""
    from sglang_flowprefill.adapter.model import direct_decoder, model_runner

    num_direct = 0

    def counted(*args):
        nonlocal num_direct
        num_direct += 1
        return tokens_of_forward(*args)

    tokens_of_forward, direct_decoder._Tokens = direct_decoder._Tokens, counted
    if not is_direct:
        model_runner.can_run_directly = lambda *_: False
    if has_hook:
        use_compiled_ops = model_runner.use_compiled_ops

        def hooking(model):
            model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
            return use_compiled_ops(model)

        model_runner.use_compiled_ops = hooking
    path = build_model(family, folder)
    flags = ("--max-total-tokens", "2048", "--dtype", dtype, *flags)
    engine = Engine(EngineSettings(str(path), flags))
    num_direct = 0  # not those of the start
    groups = [
        tuple(Request(f"request {n}", prompt(n, seed=1), 4) for n in lengths) for lengths in GROUPS
    ]
    num_boundaries, num_suspensions = engine.num_boundaries, engine.num_suspensions
    engine.serve(InTurns(groups))
    return Served(
        engine.answers,
        engine.num_boundaries - num_boundaries,
        engine.num_suspensions - num_suspensions,
        num_direct,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_same_bits_and_the_same_places_to_stop(family, dtype, model_folder):
    """Prefills of one and of several prompts and decode steps, all interleaved."""
    directly = in_child(serve, family, model_folder, dtype=dtype)
    by_modules = in_child(serve, family, model_folder, dtype=dtype, is_direct=False)
    assert directly.num_direct > len(GROUPS)
    assert by_modules.num_direct == 0
    assert directly.num_boundaries == directly.num_suspensions > 0
    assert by_modules.num_boundaries == directly.num_boundaries
    for name, answer in by_modules.answers.items():
        found = directly.answers[name]
        assert (found.tokens, found.num_cached) == (answer.tokens, answer.num_cached)
        for left, right in zip(found.prefills, answer.prefills, strict=True):
            np.testing.assert_array_equal(left.next_token_logits, right.next_token_logits)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        pytest.param("qwen3", {}, id="layers of another kind"),
        pytest.param("llama", {"has_hook": True}, id="somebody watches a module"),
        pytest.param("llama", {"flags": ("--kv-cache-dtype", "bfloat16")}, id="another KV dtype"),
    ],
)
def test_everything_else_runs_through_the_modules(family, settings, model_folder):
    """What the operators alone would not do, or nobody would see."""
    served = in_child(serve, family, model_folder, **settings)
    assert served.num_direct == 0
    assert all(len(answer.tokens) == 4 for answer in served.answers.values())


def test_prompts_whose_operators_are_cut_run_through_the_modules(model_folder):
    """Row tiles belong to modules; decode steps and prompts below a tile stay direct."""
    flags = ("--flowprefill-max-operator-ms", "0.001")
    in_tiles = in_child(serve, "llama", model_folder, flags=flags)
    whole = in_child(serve, "llama", model_folder)
    assert 0 < in_tiles.num_direct < whole.num_direct
    assert in_tiles.num_boundaries > whole.num_boundaries
