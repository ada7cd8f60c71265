"""What ``python -m sglang_flowprefill top`` prints, asking a made-up server."""

import msgspec
import pytest

from sglang_flowprefill.__main__ import main
from tests.live_states import HOSTILE_ID, answering, sample_state


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    """Room for every column."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("SGLANG_API_KEY", raising=False)


def test_once_prints_one_picture_and_ends(capsys):
    """Classes, queue, prefills with their progress and blocking time, in one frame."""
    with answering(sample_state()) as server:
        assert main(["top", "--url", server.url, "--once"]) == 0
        assert server.num_asked == 1
    text = capsys.readouterr().out
    assert "policy s-edf, by operator; up 1 h 2 min" in text
    assert "2 waiting, 1 running, 1 suspended (48 MB), 5 decoding" in text
    assert "12.5 rounds/s; blocking p50 4.2 ms, p99 9.1 ms of 54 yields" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["chat"][-7:] == ["500", "ms", "580", "600", "1", "4", "0"]
    assert rows["7"][1:4] == ["long-prompt", "documents", "suspended"]
    assert rows["8"][-5:] == ["200", "ms", "64", "-50", "ms"]
    assert {"w-1", "w-2"} <= rows.keys()


def test_request_ids_are_printed_as_they_are(capsys):
    """What looks like markup of the terminal or of HTML is not taken for it."""
    state = sample_state()
    with answering(state) as server:
        main(["top", "--url", server.url, "--once"])
    assert HOSTILE_ID[:20] in capsys.readouterr().out


@pytest.mark.parametrize("place", ["waiting", "prefills"])
@pytest.mark.parametrize("code", ["\x1b]0;title\x07", "\x9b2J", "\r", "\u202e"], ids=repr)
def test_request_ids_send_the_terminal_no_commands(place, code, capsys):
    """Whoever sends requests does not get to write on the operator's terminal."""
    sample = sample_state()
    if place == "waiting":
        entries = [msgspec.structs.replace(sample.waiting[0], request_id=f"a{code}b")]
    else:
        entries = [msgspec.structs.replace(sample.prefills[0], request_ids=[f"a{code}b"])]
    state = sample_state(**{place: entries})
    with answering(state) as server:
        main(["top", "--url", server.url, "--once"])
    printed = capsys.readouterr().out
    assert "a\N{REPLACEMENT CHARACTER}" in printed
    assert code not in printed


def test_a_long_queue_is_cut_and_counted(capsys):
    """Only the first of the queue are shown, and the number of the others."""
    entries = sample_state().waiting * 20
    with answering(sample_state(waiting=entries, num_waiting=500)) as server:
        main(["top", "--url", server.url, "--once"])
    assert "and 492 more" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_the_key_is_sent(by, monkeypatch):
    """A protected server is asked with the key of the flag or of the variable."""
    flags = ["--api-key", "secret"] if by == "flag" else []
    if by == "variable":
        monkeypatch.setenv("SGLANG_API_KEY", "secret")
    with answering(sample_state()) as server:
        server.api_key = "secret"
        assert main(["top", "--url", server.url, "--once", *flags]) == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {"error": "Unauthorized"}), "wants another API key: pass --api-key"),
        ((404, {}), "runs without FlowPrefill"),
        ((503, {"error": "the scheduler process has ended"}), "503 .*: the scheduler process"),
        ((500, b"oops"), "HTTP 500"),
        (b"[]", "answers with something else"),
        ({"schema_version": 1}, "answers with something else"),
        (sample_state(schema_version=9), "version 9 of the state and this command reads 1"),
    ],
    ids=["key", "stock", "dead", "not JSON", "a list", "too little", "version"],
)
def test_what_goes_wrong_is_one_line(answer, words, capsys):
    """Every failure of the first question ends the command with one line that says what to do."""
    import re

    with answering(answer) as server:
        assert main(["top", "--url", server.url, "--once"]) == 1
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert error.count("\n") == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "localhost:30000", "file:///etc/passwd"])
def test_an_address_that_leads_nowhere_is_named(url, capsys):
    """Nobody listens, or it is no address: the message holds it."""
    assert main(["top", "--url", url, "--once"]) == 1
    assert url in capsys.readouterr().err


def test_ctrl_c_ends_the_live_view(monkeypatch):
    """The live view asks again after each interval, also after a failure, until Ctrl-C."""
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("sglang_flowprefill.commands.top.time.sleep", sleep)
    with answering(sample_state(), (503, {"error": "gone"}), sample_state()) as server:
        assert main(["top", "--url", server.url, "--interval-s", "0.5"]) == 0
        assert server.num_asked == 3
    assert slept == [0.5] * 3
