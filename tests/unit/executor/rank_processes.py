"""Ranks in processes of their own, for tests. Imported by the processes that it starts."""

import multiprocessing
import os
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from sglang_flowprefill.errors import RankError
from sglang_flowprefill.executor import Ranks
from sglang_flowprefill.executor.verdict import FollowerVerdict, RankProcess, VerdictBoard

LIMIT_S = 60.0
"""Far longer than any of this takes; a test that would hang fails after it."""


@contextmanager
def started(target, *arguments):
    """Run ``target(connection, *arguments)`` in a process; yield our end of the connection."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(LIMIT_S)
        process.kill()


def receive(connection):
    """Return what the other side sent.

    Raises:
        TimeoutError: Nothing came.
    """
    if not connection.poll(LIMIT_S):
        raise TimeoutError(f"no answer within {LIMIT_S} s")
    return connection.recv()


def linger(num_yields):
    """Let the other processes run ahead by a while that scales with the argument."""
    for _ in range(num_yields):
        os.sched_yield()


def follow(connection, leader_pid):
    """Answer ``(board path, rank, lingering at each boundary)`` with the verdicts found there."""
    leader = RankProcess(0, leader_pid)
    try:
        while True:
            path, rank, pace = connection.recv()
            verdict = FollowerVerdict(VerdictBoard(path), rank, leader, LIMIT_S)
            connection.send("ready")
            found = []
            for num_yields in pace:
                linger(num_yields)
                found.append(verdict())
            connection.send(found)
    except EOFError:
        return


def run_rank(connection, rank, size, rendezvous):
    """Join a group and report what each use of ``Ranks`` gives on this rank."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    ranks = Ranks(rank, size, dist.group.WORLD)
    report = {"agreed": ranks.agree(lambda: f"said by rank {rank}")}
    ranks.require_equal("answer", 42)
    try:
        ranks.require_equal("rank number", rank)
    except RankError as error:
        report["unequal"] = str(error)
    pattern = iter([False, True, True, False, True])
    should_yield = ranks.agreed_yield(lambda: next(pattern))
    report["verdicts"] = [should_yield() for _ in range(5)]
    maps = Path("/proc/self/maps").read_text().splitlines()
    report["shared memory"] = [line for line in maps if "sglang-flowprefill-" in line]
    report["peers alive"] = ranks.require_peers_alive() is None
    connection.send(report)
    if rank == size - 1:
        os._exit(1)  # without a word, as if killed
    try:
        ranks.agree(lambda: [ranks.agree(lambda: None) for _ in range(100)])
    except RuntimeError:
        try:
            ranks.require_peers_alive()
        except RankError as error:
            connection.send(str(error))
