"""The prefix cache under suspended prefills: hits, locks, evictions and what an abort leaves."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.engine.engine import Answer, Engine, EngineSettings, Request, in_child
from tests.engine.models import build_model
from tests.engine.prompts import prompt
from tests.engine.scripts import HoldsBack, InTurns, Undisturbed

pytestmark = pytest.mark.server

PREFIX = prompt(150, 1)
NUM_OUTPUT_TOKENS = 6
NUM_TURNS = 4
ROOMY_POOL, SMALL_POOL = 4096, 420
MAX_LOGIT_DIFFERENCE = 1e-4
"""Between stock attention, which computes the cached rows again, and ours, which does not."""


def _engine(folder: Path, num_pool_tokens: int, *, is_stock: bool = False) -> Engine:
    path = build_model("llama", folder, num_layers=2)
    flags = ("--max-total-tokens", str(num_pool_tokens))
    return Engine(EngineSettings(str(path), flags, is_stock=is_stock))


def _request(name: str, *parts: tuple[int, ...]) -> Request:
    return Request(name, sum(parts, ()), NUM_OUTPUT_TOKENS)


# ---- the same requests, stock and ours ----

SHARING = (
    (_request("a prefix", PREFIX),),
    (_request("the prefix again", PREFIX),),
    (_request("longer", PREFIX, prompt(40, 2)),),
    (_request("two at once, one", PREFIX, prompt(30, 3)), _request("two, other", prompt(70, 4))),
    (_request("part of it", PREFIX[:90], prompt(50, 5)),),
    (_request("longer by one", PREFIX, prompt(40, 2)[:1]),),
)


def serve_sharing(folder: Path, *, is_stock: bool) -> dict[str, Answer]:
    """Serve requests that share prefixes, each batch undisturbed; run in a child."""
    engine = _engine(folder, ROOMY_POOL, is_stock=is_stock)
    engine.serve(Undisturbed(SHARING))
    return engine.answers


def serve_chats(folder: Path, *, is_stock: bool) -> list[Answer]:
    """Serve two conversations, turn by turn; ours at the same time and in turns."""
    engine = _engine(folder, ROOMY_POOL, is_stock=is_stock)
    histories = [prompt(60, 20), prompt(45, 21)]
    answers = []
    for turn in range(NUM_TURNS):
        groups = []
        for chat, history in enumerate(histories):
            histories[chat] = history + prompt(25, 100 * chat + turn)
            groups.append((_request(f"chat {chat} turn {turn}", histories[chat]),))
        engine.serve(Undisturbed(groups) if is_stock else InTurns(groups))
        for chat, ((request,),) in enumerate(zip(groups, strict=True)):
            answers.append(engine.answers[request.request_id])
            histories[chat] += tuple(answers[-1].tokens)
    return answers


def test_prefix_hits_are_those_of_stock_sglang(model_folder):
    """Requests that share prefixes find as much cached, and answer the same, as on stock SGLang."""
    stock = in_child(serve_sharing, model_folder, is_stock=True)
    ours = in_child(serve_sharing, model_folder, is_stock=False)
    assert [a.num_cached for a in ours.values()] == [a.num_cached for a in stock.values()]
    assert sum(a.num_cached > 80 for a in ours.values()) == 5
    for name, answer in ours.items():
        assert answer.tokens == stock[name].tokens
        (one,), (other,) = answer.prefills, stock[name].prefills
        assert np.abs(one.next_token_logits - other.next_token_logits).max() < MAX_LOGIT_DIFFERENCE


def test_interleaved_chats_answer_as_on_stock_sglang(model_folder):
    """Two conversations, suspended at every boundary, reuse their history and say the same."""
    stock = in_child(serve_chats, model_folder, is_stock=True)
    ours = in_child(serve_chats, model_folder, is_stock=False)
    assert [a.tokens for a in ours] == [a.tokens for a in stock]
    assert [a.num_cached for a in ours] == [a.num_cached for a in stock]
    assert all(a.num_cached > 50 for a in ours[2:])


# ---- suspended prefills that share ----


@dataclass(frozen=True)
class Sharers:
    """Two prefills that share a prefix, alone and in turns, by whether the prefix was cached."""

    alone: dict[str, Answer]
    in_turns: dict[str, Answer]
    later: Answer
    max_batches: int
    num_locked_tokens: int


def serve_sharers(folder: Path, *, is_prefix_cached: bool) -> Sharers:
    """Run two requests with one prefix, each alone, then both in turns; run in a child."""
    engine = _engine(folder, ROOMY_POOL)
    alone, in_turns = [
        [
            _request(f"{how}: {name}", PREFIX, prompt(30, seed))
            for name, seed in (("x", 6), ("y", 7))
        ]
        for how in ("alone", "in turns")
    ]
    for number, request in enumerate(alone):
        engine.flush_cache()
        if is_prefix_cached:
            engine.serve(Undisturbed([(_request(f"warms up {number}", PREFIX),)]))
        engine.serve(Undisturbed([(request,)]))
    engine.flush_cache()
    if is_prefix_cached:
        engine.serve(Undisturbed([(_request("warms up in turns", PREFIX),)]))
    script = InTurns([(request,) for request in in_turns])
    engine.serve(script)
    locked_tokens = engine.num_locked_tokens
    later = _request("later", PREFIX, prompt(20, 8))
    engine.serve(Undisturbed([(later,)]))
    return Sharers(
        alone={r.request_id[-1]: engine.answers[r.request_id] for r in alone},
        in_turns={r.request_id[-1]: engine.answers[r.request_id] for r in in_turns},
        later=engine.answers["later"],
        max_batches=script.max_batches,
        num_locked_tokens=locked_tokens,
    )


@pytest.mark.parametrize("is_prefix_cached", [True, False])
def test_two_suspended_prefills_share_a_prefix(model_folder, is_prefix_cached):
    """In turns they compute what each computes alone on the same cache, and leave one copy."""
    run = in_child(serve_sharers, model_folder, is_prefix_cached=is_prefix_cached)
    assert run.max_batches == 2
    for name, expected in run.alone.items():
        found = run.in_turns[name]
        assert found.num_cached == expected.num_cached == is_prefix_cached * len(PREFIX)
        assert found.tokens == expected.tokens
        np.testing.assert_array_equal(
            found.prefills[0].next_token_logits, expected.prefills[0].next_token_logits
        )
    assert run.later.num_cached == len(PREFIX)
    assert run.num_locked_tokens == 0


# ---- a prefill that stands still while others need its memory ----


@dataclass(frozen=True)
class HeldRun:
    """A held prefill and its undisturbed twin; the fillers before and after."""

    undisturbed: Answer
    held: Answer
    fillers: list[Answer]
    first_filler_again: Answer
    prefix_again: Answer
    num_locked_tokens: int


def serve_held(folder: Path) -> HeldRun:
    """Fill a small pool several times over while a prefill stands still; run in a child."""
    engine = _engine(folder, SMALL_POOL)
    ids = (PREFIX, prompt(50, 9))
    engine.serve(Undisturbed([(_request("warms up", PREFIX),), (_request("undisturbed", *ids),)]))
    engine.flush_cache()
    engine.serve(Undisturbed([(_request("warms up again", PREFIX),)]))
    fillers = [_request(f"filler {i}", prompt(120, 30 + i)) for i in range(6)]
    script = HoldsBack(_request("held", *ids), fillers)
    engine.serve(script)
    again = [
        _request("prefix again", PREFIX, prompt(5, 10)),
        _request("first again", prompt(120, 30)),
    ]
    engine.serve(Undisturbed([(request,) for request in again]))
    return HeldRun(
        undisturbed=engine.answers["undisturbed"],
        held=engine.answers["held"],
        fillers=[engine.answers[filler.request_id] for filler in fillers],
        first_filler_again=engine.answers["first again"],
        prefix_again=engine.answers["prefix again"],
        num_locked_tokens=script.num_locked_tokens,
    )


def test_a_suspended_prefill_keeps_its_prefix_under_eviction(model_folder):
    """Everything else is evicted around it; its own prefix stays, and so does every logit."""
    run = in_child(serve_held, model_folder)
    assert run.num_locked_tokens == len(PREFIX)
    assert all(len(filler.tokens) == NUM_OUTPUT_TOKENS for filler in run.fillers)
    assert run.first_filler_again.num_cached == 0
    assert run.first_filler_again.tokens == run.fillers[0].tokens
    assert run.prefix_again.num_cached >= len(PREFIX)
    assert run.held.num_cached == run.undisturbed.num_cached == len(PREFIX)
    assert run.held.tokens == run.undisturbed.tokens
    np.testing.assert_array_equal(
        run.held.prefills[0].next_token_logits, run.undisturbed.prefills[0].next_token_logits
    )


def serve_aborted(folder: Path) -> tuple[Answer, Answer, Answer]:
    """Abort a suspended prefill on a warm cache, then ask again; run in a child."""
    engine = _engine(folder, ROOMY_POOL)
    ids = (PREFIX, prompt(50, 9))
    engine.serve(Undisturbed([(_request("warms up", PREFIX),), (_request("undisturbed", *ids),)]))
    engine.flush_cache()
    engine.serve(Undisturbed([(_request("warms up again", PREFIX),)]))
    engine.serve(HoldsBack(_request("aborted", *ids), aborts=True))
    assert engine.num_locked_tokens == 0
    engine.serve(Undisturbed([(_request("asked again", *ids),)]))
    names = ("undisturbed", "aborted", "asked again")
    return tuple(engine.answers[name] for name in names)


def test_an_aborted_suspended_prefill_publishes_nothing(model_folder):
    """What it had computed does not reach the prefix cache; what it had found there stays."""
    undisturbed, aborted, again = in_child(serve_aborted, model_folder)
    assert aborted.finish_type == "abort"
    assert aborted.tokens == []
    assert again.num_cached == len(PREFIX)
    assert again.tokens == undisturbed.tokens
