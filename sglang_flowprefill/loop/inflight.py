"""The one table of prefills in flight: started and unfinished, running or suspended.

Nothing else in the process remembers them. The loop alone writes; the engine's bookkeeping, the
observers and the thread that answers for live state read. A cursor that leaves the table must have
ended or been given back by its engine: the stack of one that is merely forgotten stays in memory
with all its tensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic

from sglang_flowprefill.core import BatchState, PrefillBatch, PrefillRequest
from sglang_flowprefill.loop.engine import Started


@dataclass(slots=True, eq=False)
class OperatorCursor(Generic[Started]):
    """A prefill between its start and its result.

    Attributes:
        prefill: The policy's account of it: state, time run, members.
        work: What the engine keeps of it.
        started_as: Its members at the start, before any chunk was cached.
        num_forwards: Forward passes started.
        is_preempted: True from a preemption until it goes on.
    """

    prefill: PrefillBatch
    work: Started
    started_as: tuple[PrefillRequest, ...]
    num_forwards: int = 1
    is_preempted: bool = False


AnyCursor = OperatorCursor[Any]
"""A cursor of whatever engine, as observers see it."""


class InflightTable(Generic[Started]):
    """Every prefill in flight, by the id of its batch, oldest first.

    Attributes:
        current: The one that ran last, if it has not ended.
    """

    def __init__(self) -> None:
        self._cursors: dict[int, OperatorCursor[Started]] = {}
        self._next_batch_id = 0
        self.current: OperatorCursor[Started] | None = None

    def __len__(self) -> int:
        return len(self._cursors)

    def __iter__(self) -> Iterator[OperatorCursor[Started]]:
        """Walk over a copy, which any thread may take while the loop changes the table."""
        return iter(list(self._cursors.values()))

    def __getitem__(self, batch_id: int) -> OperatorCursor[Started]:
        return self._cursors[batch_id]

    def __contains__(self, cursor: OperatorCursor[Started]) -> bool:
        return self._cursors.get(cursor.prefill.batch_id) is cursor

    @property
    def batches(self) -> list[PrefillBatch]:
        """The policy's account of each."""
        return [cursor.prefill for cursor in self._cursors.values()]

    def suspended(self) -> list[PrefillBatch]:
        """Return the batches that stand suspended. May be called in any thread."""
        return [c.prefill for c in self if c.prefill.state is BatchState.SUSPENDED]

    def open(self, work: Started, predicted_s: float, release_s: float) -> OperatorCursor[Started]:
        """Enter what the engine has started.

        Args:
            work: The prefill.
            predicted_s: Predicted seconds of the whole prefill.
            release_s: Expected seconds from its end until its KV comes free.
        """
        prefill = PrefillBatch(
            self._next_batch_id,
            work.requests,
            predicted_s,
            num_kv_tokens=work.num_kv_tokens,
            held_bytes=work.held_bytes,
            release_s=release_s,
        )
        self._next_batch_id += 1
        cursor = OperatorCursor(prefill, work, work.requests)
        self._cursors[prefill.batch_id] = cursor
        return cursor

    def close(self, cursor: OperatorCursor[Started]) -> None:
        """Take out what has ended or is about to be given back."""
        del self._cursors[cursor.prefill.batch_id]
        if self.current is cursor:
            self.current = None
