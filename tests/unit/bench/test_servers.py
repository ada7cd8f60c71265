"""Servers that cannot be measured say why, and leave no process behind."""

import asyncio
import os
import time

import pytest

from bench.errors import ServerError
from bench.systems import servers
from bench.systems.engine import Launch, ServerOptions
from bench.systems.servers import running_server

FLAGS = ServerOptions(model_path="some/model")


def start(monkeypatch, tmp_path, script, options=FLAGS):
    """Run this shell script as if it were a server."""
    launch = Launch(("sh", "-c", script), {})
    monkeypatch.setattr(servers, "plan_launch", lambda *_: launch)
    monkeypatch.setattr(servers, "_HEALTH_INTERVAL_S", 0.01)

    async def go():
        async with running_server("stock", options, tmp_path / "log", 16):
            pass

    asyncio.run(go())


def test_server_that_dies_shows_the_end_of_its_log(monkeypatch, tmp_path):
    """The error names the status and quotes the log."""
    with pytest.raises(ServerError, match=r"(?s)stock ended with status 3.*out of memory"):
        start(monkeypatch, tmp_path, "echo out of memory; exit 3")


def test_server_that_never_serves_is_killed_with_its_children(monkeypatch, tmp_path):
    """After the start-up time the whole process group is gone, even where it ignores SIGTERM."""
    monkeypatch.setattr(servers, "_STOP_TIMEOUT_S", 0.02)
    script = "trap '' TERM; sleep 60 & echo $$ $!; wait"
    options = ServerOptions(model_path="m", startup_timeout_s=0.3)
    with pytest.raises(ServerError, match="not healthy after"):
        start(monkeypatch, tmp_path, script, options)
    pids = [int(line) for line in (tmp_path / "log").read_text().split()]
    assert len(pids) == 2
    for pid in pids:
        assert _will_be_gone(pid)


def _will_be_gone(pid, within_s=10.0):
    """A kill is not instantaneous on a busy machine."""
    limit_s = time.monotonic() + within_s
    while time.monotonic() < limit_s:
        if _is_gone(pid):
            return True
        time.sleep(0.05)
    return False


def _is_gone(pid):
    """A killed grandchild may stay a zombie until init reaps it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[0] == "Z"
