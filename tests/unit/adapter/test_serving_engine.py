"""Primitives of SGLang's engine that need no model, on a scheduler that is not one."""

from collections import deque
from types import SimpleNamespace

import pytest

from sglang_flowprefill.adapter.serving.engine import SGLangEngine
from sglang_flowprefill.adapter.serving.intake import Intake
from sglang_flowprefill.loop.inflight import InflightTable


class FakeScheduler:
    """As much of SGLang's scheduler as a pass of the loop touches."""

    def __init__(self, num_tokenizers=1):
        self.server_args = SimpleNamespace(tokenizer_worker_num=num_tokenizers)
        self.return_health_check_ipcs = deque()
        self.answered = []

    def maybe_send_health_check_signal(self):
        """Answer one."""
        self.answered.append(self.return_health_check_ipcs.popleft())

    def _record_scheduler_state_for_paused_engine(self):
        """Note nothing."""


def engine_of(scheduler):
    """Return an engine that drives it."""
    return SGLangEngine(
        scheduler, None, Intake(), InflightTable(), lambda: 0.0, max_chunk_tokens=None
    )


@pytest.fixture(autouse=True)
def _no_leak_checks(monkeypatch):
    monkeypatch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "0")


def test_a_pass_answers_every_health_check():
    """Prefills that overtake one another may end none for a while; the loop is alive."""
    scheduler = FakeScheduler()
    scheduler.return_health_check_ipcs += ["worker 1", "worker 2"]
    engine_of(scheduler).after_pass()
    assert scheduler.answered == ["worker 1", "worker 2"]


def test_a_paused_engine_shows_that_it_is_alive():
    """The HTTP process does not pass health checks on while it is paused."""
    scheduler = FakeScheduler()
    engine_of(scheduler).on_paused()
    assert scheduler.answered == [None]


def test_a_paused_engine_answers_known_workers_only():
    """With several tokenizer workers a message without an addressee cannot be delivered."""
    scheduler = FakeScheduler(num_tokenizers=2)
    scheduler.return_health_check_ipcs.append("worker 2")
    engine_of(scheduler).on_paused()
    assert scheduler.answered == ["worker 2"]
