"""A model is served with a longer context without touching its folder."""

import json

import pytest

from bench.blocking.long_context import model_with_context
from bench.errors import UsageError


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Make a model folder with a context of 8192, and a cache beside it."""
    monkeypatch.setenv("SGLANG_FLOWPREFILL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 576, "max_position_embeddings": 8192}')
    (folder / "model.safetensors").write_text("weights")
    return folder


def test_model_that_suffices_is_served_as_it_is(model):
    """No copy is made."""
    assert model_with_context(model, 8192) == model


def test_longer_context_changes_the_configuration_only(model):
    """Weights are linked, the model's own configuration is as it was; again is the same folder."""
    for _ in range(2):
        longer = model_with_context(model, 33_000)
        assert json.loads((longer / "config.json").read_text()) == {
            "hidden_size": 576,
            "max_position_embeddings": 33_000,
        }
        assert (longer / "model.safetensors").resolve() == model / "model.safetensors"
    assert json.loads((model / "config.json").read_text())["max_position_embeddings"] == 8192
    assert longer != model_with_context(model, 34_000)


@pytest.mark.parametrize("config", [None, "{}", "no JSON"])
def test_model_of_unknown_context_is_refused(model, config):
    """The error says what to give instead."""
    (model / "config.json").unlink()
    if config is not None:
        (model / "config.json").write_text(config)
    with pytest.raises(UsageError, match="--model-path"):
        model_with_context(model, 33_000)
