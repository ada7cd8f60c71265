"""After a weight update nothing computes with the old weights: no packed copy goes stale."""

from pathlib import Path

import numpy as np
import pytest

from tests.engine.engine import Answer, Engine, EngineSettings, Request, in_child
from tests.engine.models import build_model
from tests.engine.prompts import prompt
from tests.engine.scripts import Undisturbed

pytestmark = pytest.mark.server

PROMPT = prompt(70, 3)
NUM_OUTPUT_TOKENS = 5
ONE, OTHER = "llama", "mistral"  # one architecture, different random weights


def serve_updated(folder: Path, *models: str) -> Answer:
    """Start with the first model, update its weights to the next, and serve after each."""
    paths = [build_model(model, folder, num_layers=2) for model in models]
    flags = ("--max-total-tokens", "1024", "--dtype", "bfloat16")
    engine = Engine(EngineSettings(str(paths[0]), flags))
    for number, path in enumerate(paths):
        if number:
            engine.update_weights(path)
        request = Request(f"request {number}", PROMPT, NUM_OUTPUT_TOKENS)
        engine.serve(Undisturbed([(request,)]))
    return engine.answers[request.request_id]


def test_updated_weights_answer_as_if_loaded_at_start(model_folder):
    """In bfloat16, where weights are packed once: prefill logits and decoded tokens, to the bit."""
    updated = in_child(serve_updated, model_folder, ONE, OTHER)
    loaded = in_child(serve_updated, model_folder, OTHER)
    before = in_child(serve_updated, model_folder, ONE)
    assert updated.tokens == loaded.tokens != before.tokens
    (one,), (other,) = updated.prefills, loaded.prefills
    assert np.array_equal(one.next_token_logits, other.next_token_logits)
