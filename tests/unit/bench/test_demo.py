"""The demo: a burst, what is to be seen of it, and its page. No server runs here."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from fake_sglang import FakeSGLang
from rich.console import Console
from rows import row

from bench.__main__ import _parser
from bench.demo import command
from bench.demo.board import Board, State
from bench.demo.burst import burst
from bench.systems.servers import ServerDescription
from bench.workloads.request import TraceRequest
from tests.browser import console_errors

SLOS_S = {"text": 1.0, "file": 8.0}


def test_the_longest_prompts_come_first_and_the_others_as_they_would():
    """All of the generator's requests are there, in order of arrival, the rest at its rate."""
    workload = burst(40, 4.0, 0)
    lengths = [request.num_input_tokens for request in workload.requests]
    arrivals_s = [request.arrival_s for request in workload.requests]
    assert len(lengths) == 40
    assert min(lengths[:4]) >= max(lengths[4:])
    assert arrivals_s == sorted(arrivals_s)
    assert (arrivals_s[-1] - arrivals_s[4]) == pytest.approx(36 / 4.0)


@pytest.mark.parametrize("num_requests", [1, 4, 5])
def test_a_burst_may_be_of_documents_only(num_requests):
    """Few requests are no special case."""
    assert len(burst(num_requests, 4.0, 0).requests) == num_requests


def board_at(now_s, *rows):
    """Return a board of three text requests, a second apart, after so many seconds."""
    clock = SimpleNamespace(now_s=0.0)
    requests = [TraceRequest(float(i), "text", 8, 1) for i in range(3)]
    board = Board("t", requests, SLOS_S, lambda: clock.now_s)
    clock.now_s = now_s
    for finished in rows:
        board.on_finished(finished)
    return board


def test_a_request_that_waits_beyond_its_objective_is_late_already():
    """Nobody has to answer for that to be seen."""
    assert board_at(1.5).states() == [State.OVERDUE, State.WAITING, State.TO_COME]


def test_an_answer_is_in_time_or_late_and_a_failure_is_late():
    """By the time to its first token."""
    board = board_at(9.0, row(0, ttft_s=0.5), row(1, ttft_s=1.5), row(2, ttft_s=None))
    assert board.states() == [State.IN_TIME, State.LATE, State.LATE]


def test_the_board_shows_every_request_and_counts_classes():
    """A letter and a mark for each request in order of arrival; counts and times by class."""
    console = Console(width=100, record=True)
    console.print(board_at(1.5, row(0, ttft_s=0.5)))
    text = console.export_text()
    assert {"ttt", "+?."} <= {line.strip() for line in text.splitlines()}
    (line,) = [line for line in text.splitlines() if "text" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "text",
        "1 s",
        "1",
        "0",
        "1",
        "0.50",
        "0.50",
    ]


def test_the_demo_runs_both_systems_and_writes_a_page(monkeypatch, tmp_path, capsys, browser):
    """Also where no terminal is; the page opens without a complaint and names both systems."""

    @asynccontextmanager
    async def running(_name, _options, _log, _longest):
        async with FakeSGLang().running() as endpoint:
            yield SimpleNamespace(
                endpoint=endpoint, description=ServerDescription(command=("python", "<x>"))
            )

    monkeypatch.setattr(command, "running_server", running)
    folder = tmp_path / "demo"
    arguments = ["demo", "--num-requests", "6", "--rate", "50", "--out", str(folder)]
    args = _parser().parse_args(arguments)
    asyncio.run(args.run(args))
    printed = capsys.readouterr().out
    assert str(folder / "demo.html") in printed.replace("\n", "")
    assert "waiting, late already" in printed
    browser.get((folder / "demo.html").as_uri())
    assert console_errors(browser) == []
    heads = browser.find_elements("css selector", "#demo-settings tbody th")
    assert [cell.text for cell in heads] == ["stock", "flowprefill"]
    assert browser.find_element("css selector", "figure svg").size["height"] > 60
    assert "<x>" in browser.find_element("css selector", "#demo-settings").text
