"""How the error of predictions is collected and shown."""

import asyncio

import pytest
from fake_sglang import FakeSGLang
from rich.console import Console

from bench import prediction
from bench.prediction import (
    Prediction,
    PredictionOptions,
    draw_prediction,
    measure_prediction,
    print_prediction,
    windows_of,
)

OPTIONS = PredictionOptions(
    num_requests=12, num_documents=2, document_tokens=40, max_tokens=60, max_burst=3
)
WINDOW_OF_SERVER = 5


def a_prediction(part="quiet", actual_s=1.0, predicted_s=1.1, num_tokens=100, num_pairs=5050.0):
    """Return one prefill's prediction."""
    return Prediction(part, 1, num_tokens, num_pairs, actual_s, predicted_s)


def records_of(bodies):
    """Return what a server would report: as many records as it keeps, each by its number."""
    records = [
        {
            "num_requests": 1,
            "num_uncached_tokens": len(body["input_ids"]),
            "num_attention_pairs": 0.0,
            "actual_s": float(index + 1),
            "predicted_s": 1.0,
        }
        for index, body in enumerate(bodies)
    ]
    state = {"num_observed": len(records), "recent": records[-WINDOW_OF_SERVER:]}
    return {"internal_states": [{"flowprefill": {"prediction": state}}]}


def test_every_prefill_is_collected_once(monkeypatch):
    """Though the server keeps only the latest; what warmed it up does not count."""
    monkeypatch.setattr(prediction, "_BURN", "pass")

    async def go():
        fake = FakeSGLang()
        fake.info = lambda: records_of(fake.bodies)
        async with fake.running() as server:
            return await measure_prediction(server, OPTIONS), fake

    found, fake = asyncio.run(go())
    assert len(fake.bodies) == OPTIONS.num_documents + 3 * OPTIONS.num_requests
    numbers = [int(p.actual_s) for p in found]
    assert numbers == list(range(OPTIONS.num_documents + 1, len(fake.bodies) + 1))
    parts = [p.part for p in found]
    assert parts == ["quiet"] * 12 + ["busy cores"] * 12 + ["quiet again"] * 12


def test_some_prompts_go_on_from_a_document():
    """So that the cache is hit: they begin with one of the documents."""

    async def go():
        fake = FakeSGLang()
        fake.info = lambda: records_of(fake.bodies)
        async with fake.running() as server:
            await measure_prediction(server, OPTIONS)
        return [tuple(body["input_ids"]) for body in fake.bodies]

    prompts = asyncio.run(go())
    documents = set(prompts[: OPTIONS.num_documents])
    num_hits = sum(prompt[:40] in documents for prompt in prompts[OPTIONS.num_documents :])
    assert 6 < num_hits < 30


def test_windows_are_of_one_part_each():
    """The error of a window is the median; the last one may be short."""
    found = [a_prediction(predicted_s=1.2) for _ in range(30)]
    found += [a_prediction("busy cores", predicted_s=0.5) for _ in range(3)]
    assert windows_of(found) == {
        "quiet": [(0, 25, pytest.approx(0.2)), (25, 30, pytest.approx(0.2))],
        "busy cores": [(0, 3, pytest.approx(0.5))],
    }


def test_a_prefill_after_a_prefix_is_told_by_its_pairs():
    """A hundred tokens have 5,050 pairs of their own; more were cached."""
    assert not a_prediction().has_prefix
    assert a_prediction(num_pairs=100 * 1000.0).has_prefix


def test_table_and_picture(tmp_path):
    """Kinds of prefills are judged apart, once the predictor has learnt."""
    found = [a_prediction() for _ in range(50)]
    found += [a_prediction(predicted_s=1.3, num_pairs=1e5) for _ in range(10)]
    console = Console(width=100, record=True)
    print_prediction("title", found, console)
    assert "after a cached prefix: 30.0% of 10" in console.export_text()
    draw_prediction("title", found, tmp_path / "prediction.png")
    assert (tmp_path / "prediction.png").read_bytes().startswith(b"\x89PNG")
