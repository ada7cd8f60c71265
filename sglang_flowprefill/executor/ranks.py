"""The tensor-parallel ranks of one server, seen from one of them. Rank 0 leads.

Every rank runs the same loop over the same requests. What a clock or a socket decides is decided
by the leader alone: between two forward passes through ``agree``, inside one through a verdict
(``verdict.py``). Everything else is the same computation on the same data, as SGLang itself
requires of its ranks.

``agree`` and ``require_equal`` are collectives: all ranks call them equally often and in the same
order, and never from inside a forward pass.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from sglang_flowprefill.errors import RankError
from sglang_flowprefill.executor.verdict import (
    FollowerVerdict,
    LeaderVerdict,
    RankProcess,
    VerdictBoard,
)

Value = TypeVar("Value")

# A process closes its connections a moment before it has ended.
_END_CHECKS = 20
_END_CHECK_INTERVAL_S = 0.05


class Ranks:
    """This rank among its peers.

    Args:
        rank: From 0, the leader.
        size: Number of ranks; 1 makes every method local.
        group: ``torch.distributed`` group of the ranks, on the CPU; unused by a single rank.

    Attributes:
        is_leader: True on rank 0: it hears of events, reads clocks, reports statistics.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None
    ) -> None:
        self.rank = rank
        self.size = size
        self.is_leader = rank == 0
        self._group = group
        self._peers: dict[int, RankProcess] = {}
        if size > 1:
            pids = self._gather(os.getpid())
            self._peers = {r: RankProcess(r, pid) for r, pid in enumerate(pids) if r != rank}

    def agree(self, decide: Callable[[], Value]) -> Value:
        """Return on every rank what ``decide`` returns on the leader; only there it is called."""
        if self.size == 1:
            return decide()
        box = [decide() if self.is_leader else None]
        dist.broadcast_object_list(box, group=self._group, group_src=0)
        return box[0]  # type: ignore[return-value]

    def require_equal(self, what: str, value: object) -> None:
        """Check that all ranks have the same value.

        Raises:
            RankError: They differ; raised on every rank.
        """
        if self.size == 1:
            return
        values = self._gather(value)
        if any(other != value for other in values):
            raise RankError(f"ranks differ in their {what}: {values}")

    def agreed_yield(self, should_yield: Callable[[], bool]) -> Callable[[], bool]:
        """Return what a checkpoint asks at every boundary, with one answer for all ranks.

        Args:
            should_yield: The leader's event source; never called on the others.
        """
        if self.size == 1:
            return should_yield
        board = self._shared_board()
        if self.is_leader:
            return LeaderVerdict(board, should_yield, self._peers)
        return FollowerVerdict(board, self.rank, self._peers[0])

    def require_peers_alive(self) -> None:
        """Name the rank whose end explains why a collective has just failed, if it is one.

        Raises:
            RankError: A rank has ended.
        """
        for _ in range(_END_CHECKS if self._peers else 0):
            ended = [peer.name for peer in self._peers.values() if peer.has_ended()]
            if ended:
                raise RankError(
                    f"{' and '.join(ended)} ended; no rank can go on without the others"
                )
            time.sleep(_END_CHECK_INTERVAL_S)

    def _shared_board(self) -> VerdictBoard:
        """Share memory under a name that exists only until every rank has opened it."""
        path = self.agree(self._create_board)
        try:
            board = VerdictBoard(path)
        except OSError as error:
            raise RankError(f"rank {self.rank} cannot share memory with rank 0: {error}") from error
        self.require_equal("shared memory", path)  # nobody passes before everybody has opened it
        if self.is_leader:
            path.unlink()
        return board

    def _create_board(self) -> Path:
        memory = Path("/dev/shm")  # noqa: S108 (mkstemp below makes the name unguessable)
        folder = memory if memory.is_dir() else None
        handle, name = tempfile.mkstemp(prefix="sglang-flowprefill-", dir=folder)
        os.close(handle)
        VerdictBoard.create_file(Path(name), self.size)
        return Path(name)

    def _gather(self, value: Value) -> list[Value]:
        values: list[Value | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values  # type: ignore[return-value]
