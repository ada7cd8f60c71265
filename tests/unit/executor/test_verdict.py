"""All ranks stop at the same boundaries, and nobody waits for ever."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_processes import LIMIT_S, follow, linger, receive, started

from sglang_flowprefill.errors import RankError
from sglang_flowprefill.executor.verdict import (
    FollowerVerdict,
    LeaderVerdict,
    RankProcess,
    VerdictBoard,
)

NUM_FOLLOWERS = 2
# How long a rank lingers before a boundary: not at all, within the spin, beyond it.
paces = st.lists(st.sampled_from([0, 0, 0, 30, 300]), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def followers():
    """Two processes that follow whatever board they are given."""
    with ExitStack() as stack:
        yield [stack.enter_context(started(follow, os.getpid())) for _ in range(NUM_FOLLOWERS)]


@pytest.fixture
def board(tmp_path):
    """A fresh board for a leader and one follower."""
    VerdictBoard.create_file(tmp_path / "board", 2)
    return VerdictBoard(tmp_path / "board")


@pytest.fixture
def ended_process():
    """A process that has ended and that nobody has waited for."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watched = RankProcess(1, process.pid)
    assert not watched.has_ended()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    yield watched
    process.communicate()


def myself(rank):
    """Return a rank that lives and does nothing."""
    return RankProcess(rank, os.getpid())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.tuples(paces, paces, paces))
def test_every_rank_stops_exactly_where_the_leader_does(
    followers, tmp_path_factory, stops, paces_by_rank
):
    """Whoever runs ahead or behind, and though nothing else keeps the ranks in step."""
    path = tmp_path_factory.mktemp("verdict") / "board"
    VerdictBoard.create_file(path, 1 + NUM_FOLLOWERS)
    pace = [[pace[i % len(pace)] for i in range(len(stops))] for pace in paces_by_rank]
    for rank, follower in enumerate(followers, start=1):
        follower.send((path, rank, pace[rank]))
    assert [receive(follower) for follower in followers] == ["ready"] * NUM_FOLLOWERS
    answers = iter(stops)
    peers = {rank: myself(rank) for rank in range(1, 1 + NUM_FOLLOWERS)}
    leader = LeaderVerdict(VerdictBoard(path), lambda: next(answers), peers, LIMIT_S)
    for num_yields in pace[0]:
        linger(num_yields)
        leader()
    assert [receive(follower) for follower in followers] == [stops] * NUM_FOLLOWERS


def test_a_stop_is_not_overtaken_before_all_have_obeyed_it(board):
    """The leader waits for the slowest follower before it answers for another boundary."""
    answers = iter([True, False, False])
    leader = LeaderVerdict(board, lambda: next(answers), {1: myself(1)}, limit_s=0.0)
    assert leader() is True
    with pytest.raises(RankError, match=r"rank 1 .*silent .* to stop at boundary 1"):
        leader()
    assert board.verdict == (1, True)
    assert FollowerVerdict(board, 1, myself(0))() is True
    leader()
    assert board.verdict == (3, False)


def test_a_late_follower_goes_on_where_the_leader_went_on(board):
    """A verdict for a later boundary means that all before it were passed."""
    leader = LeaderVerdict(board, lambda: False, {1: myself(1)})
    for _ in range(3):
        leader()
    follower = FollowerVerdict(board, 1, myself(0))
    assert [follower() for _ in range(3)] == [False] * 3


def test_a_follower_does_not_wait_for_a_dead_leader(board, ended_process):
    """It raises an error that names the process, at once."""
    with pytest.raises(RankError, match=r"rank 1 \(process \d+\) has ended"):
        FollowerVerdict(board, 1, ended_process)()


def test_a_leader_does_not_wait_for_a_dead_follower(board, ended_process):
    """It raises an error that names the process, at once."""
    leader = LeaderVerdict(board, lambda: True, {1: ended_process})
    leader()
    with pytest.raises(RankError, match=r"rank 1 \(process \d+\) has ended"):
        leader()


def test_a_silent_leader_is_given_up(board):
    """A follower waits for a living leader no longer than the limit."""
    with pytest.raises(RankError, match=r"rank 0 .*silent .* to come to boundary 1"):
        FollowerVerdict(board, 1, myself(0), limit_s=0.0)()
