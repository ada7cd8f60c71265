"""Ranks decide as one, or say who is missing."""

from contextlib import ExitStack

import pytest
from rank_processes import receive, run_rank, started

from sglang_flowprefill.executor import Ranks

SIZE = 2


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What two ranks in processes of their own report; the last one ends without a word."""
    rendezvous = f"file://{tmp_path_factory.mktemp('ranks')}/rendezvous"
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(started(run_rank, rank, SIZE, rendezvous)) for rank in range(SIZE)
        ]
        reports = [receive(rank) for rank in ranks]
        reports[0]["last words"] = receive(ranks[0])
        yield reports


def test_the_leader_decides_for_all(reports):
    """Only the leader's function is called, and every rank gets its result."""
    assert [report["agreed"] for report in reports] == ["said by rank 0"] * SIZE


def test_unequal_ranks_are_noticed_by_all(reports):
    """Each rank raises an error that shows all values."""
    assert [report["unequal"] for report in reports] == [
        "ranks differ in their rank number: [0, 1]"
    ] * SIZE


def test_boundaries_get_one_answer_without_a_collective(reports):
    """The event source of the leader answers on every rank."""
    assert [r["verdicts"] for r in reports] == [[False, True, True, False, True]] * SIZE


def test_the_shared_memory_has_no_name_left(reports):
    """Nothing stays behind, however the processes end."""
    for report in reports:
        assert len(report["shared memory"]) == 1
        assert report["shared memory"][0].endswith("(deleted)")


def test_a_broken_collective_is_explained_by_the_rank_that_ended(reports):
    """The survivors name it; while all live there is nothing to explain."""
    assert all(report["peers alive"] for report in reports)
    assert "rank 1 (process " in reports[0]["last words"]


def test_a_single_rank_asks_nobody():
    """Without tensor parallelism everything is local."""
    ranks = Ranks()

    def should_yield():
        return True

    assert ranks.is_leader
    assert ranks.agree(lambda: 7) == 7
    assert ranks.agreed_yield(should_yield) is should_yield
    ranks.require_equal("anything", object())
    ranks.require_peers_alive()
