"""One answer for all ranks: does the running prefill stop at this boundary?

With tensor parallelism every rank runs the same forward pass and meets the same boundaries in the
same order. Only the leader hears of events, so only it can answer, and every rank has to give the
same answer at the same boundary: one that stops alone leaves the others in a collective for ever.

Boundaries are counted, by every rank on its own. At boundary *c* the leader asks its event source
and publishes *(c, stops or not)* as one aligned 64-bit word of memory that the ranks share. A
follower that comes to boundary *c* first waits for that word, one that comes later finds it or a
greater count. A greater count means "went on": after a stop, the leader publishes nothing before
every follower has obeyed that stop, each in a word of its own. That rule is what makes one word
enough: neither the collectives of a loop pass (a sender of a broadcast does not wait for its
receivers) nor the order of two stores is relied upon.

No collective is issued here: inside a forward pass it would have to fit between the model's own.
Who waits for a rank that has died or fallen silent raises ``RankError``; nobody waits for ever.
"""

import mmap
import os
import select
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sglang_flowprefill.errors import RankError

SILENCE_LIMIT_S = 120.0
"""How long a rank may let the others wait at a boundary: far longer than any operator runs."""

_WORDS_PER_LINE = 8  # a cache line per word, since each has another writer
_WORD_BYTES = 8
_SPINS = 200  # some 50 us, the usual distance of two ranks; then the core is given away
_FIRST_PAUSE_S = 50e-6
_LONGEST_PAUSE_S = 1e-3


class VerdictBoard:
    """The words that the ranks of one server share: the leader's verdict, and who obeyed it.

    Args:
        path: File made by ``create_file``; may be unlinked once every rank has opened it.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            # The memory stays as long as a rank maps it; the name is not needed.
            self._words = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")

    @staticmethod
    def create_file(path: Path, num_ranks: int) -> None:
        """Write a fresh board for this many ranks."""
        path.write_bytes(bytes(num_ranks * _WORDS_PER_LINE * _WORD_BYTES))

    @property
    def verdict(self) -> tuple[int, bool]:
        """The last boundary that the leader has answered for, and whether it stops there."""
        word = self._words[0]
        return word >> 1, bool(word & 1)

    def publish(self, boundary: int, *, stops: bool) -> None:
        """Answer for a boundary. Leader only."""
        self._words[0] = boundary << 1 | stops

    def obeyed(self, rank: int) -> int:
        """Return the last boundary at which a follower has stopped."""
        return self._words[rank * _WORDS_PER_LINE]

    def obey(self, rank: int, boundary: int) -> None:
        """Confirm that this follower stops at a boundary."""
        self._words[rank * _WORDS_PER_LINE] = boundary


class RankProcess:
    """The process of another rank on this machine.

    Args:
        rank: Its number.
        pid: Its process id, while it certainly lives.
    """

    def __init__(self, rank: int, pid: int) -> None:
        self.name = f"rank {rank} (process {pid})"
        self._end: select.poll | None = select.poll()
        try:
            self._end.register(os.pidfd_open(pid), select.POLLIN)
        except OSError:  # a kernel or sandbox without pidfd: only silence is noticed
            self._end = None

    def has_ended(self) -> bool:
        """Tell whether it has ended. A zombie has."""
        return self._end is not None and bool(self._end.poll(0))


class LeaderVerdict:
    """The leader's side: decides at every boundary and tells the others.

    Args:
        board: Shared with the followers.
        should_yield: The event source's answer.
        followers: By rank.
        limit_s: Longest wait for a follower.
    """

    def __init__(
        self,
        board: VerdictBoard,
        should_yield: Callable[[], bool],
        followers: Mapping[int, RankProcess],
        limit_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self._board = board
        self._should_yield = should_yield
        self._followers = followers
        self._limit_s = limit_s
        self._num_boundaries = 0
        self._unconfirmed_stop: int | None = None

    def __call__(self) -> bool:
        """Answer for the next boundary.

        Raises:
            RankError: A follower did not come to the last stop.
        """
        self._num_boundaries += 1
        stops = self._should_yield()
        if self._unconfirmed_stop is not None:
            self._wait_until_obeyed(self._unconfirmed_stop)
        self._unconfirmed_stop = self._num_boundaries if stops else None
        self._board.publish(self._num_boundaries, stops=stops)
        return stops

    def _wait_until_obeyed(self, boundary: int) -> None:
        for rank, process in self._followers.items():
            _wait(
                lambda rank=rank: self._board.obeyed(rank) == boundary,  # type: ignore[misc]
                process,
                f"to stop at boundary {boundary}",
                self._limit_s,
            )


class FollowerVerdict:
    """A follower's side: does at every boundary what the leader did there.

    Args:
        board: Shared with the leader.
        rank: Of this follower, from 1.
        leader: The leader's process.
        limit_s: Longest wait for the leader.
    """

    def __init__(
        self,
        board: VerdictBoard,
        rank: int,
        leader: RankProcess,
        limit_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self._board = board
        self._rank = rank
        self._leader = leader
        self._limit_s = limit_s
        self._num_boundaries = 0

    def __call__(self) -> bool:
        """Give the leader's answer for the next boundary, waiting for it if need be.

        Raises:
            RankError: The leader has ended, or does not come to this boundary.
        """
        self._num_boundaries += 1
        boundary = self._num_boundaries
        _wait(
            lambda: self._board.verdict[0] >= boundary,
            self._leader,
            f"to come to boundary {boundary}",
            self._limit_s,
        )
        stops = self._board.verdict == (boundary, True)
        if stops:
            self._board.obey(self._rank, boundary)
        return stops


def _wait(is_done: Callable[[], bool], process: RankProcess, what: str, limit_s: float) -> None:
    """Wait for another rank: spin for a moment, then sleep in ever longer pauses."""
    for _ in range(_SPINS):
        if is_done():
            return
        os.sched_yield()  # it may need this very core
    start_s = time.monotonic()
    pause_s = _FIRST_PAUSE_S
    while not is_done():
        if process.has_ended():
            raise RankError(f"{process.name} has ended; this rank waited for it {what}")
        if time.monotonic() - start_s > limit_s:
            raise RankError(
                f"{process.name} has been silent for {limit_s:.0f} s; this rank waits for it {what}"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
