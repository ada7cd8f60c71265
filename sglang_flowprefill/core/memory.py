"""Memory as a budget: when a prefill that stands suspended makes room for another, and which.

A suspended prefill holds KV slots and activations. Whoever is first in the policy's order and
finds no room has two choices: wait until some comes free, or have suspended prefills dropped.
A dropped one gives everything back and starts over later, so its computation is lost; that must
buy something. The rules, all in this file:

* Only batches behind the needy one in the policy's order are dropped, the last one first, and
  among equals the one that has run least. One that is not needed after all is spared.
* All or nothing: if dropping every one of them would not make enough room, none is dropped.
* Not if the needy one can afford to wait: its slack exceeds the predicted time until enough
  memory comes free by itself.
* Not for a doomed one, which would gain nothing. It waits; nobody behind it starts meanwhile.
* A batch with a member that was dropped ``max_restarts`` times already is immune.
* A batch that breaks the budget of activations alone may stand suspended all the same, one at a
  time: no drop would make it fit. KV has no budget beside its pool.
* If nothing else can run at all, slack and order do not matter: the first in the order gets its
  room, from anybody who is not immune.

Why every request finishes. A restart count only grows, so drops are finite. An immune request
starts only once its whole need is free (``PrefillDecider.must_reserve_all``), so it never
lacks memory again and ends whenever it is run. If nothing can run and nothing decodes, all KV is
held by started batches that lack more, none of them immune; dropping them frees the whole pool,
and whoever fits into it alone proceeds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sglang_flowprefill.core.batch import PrefillBatch
from sglang_flowprefill.core.policy import Candidate, PolicyKey


@dataclass(frozen=True, slots=True)
class Release:
    """Memory that is expected to come free by itself: a running request's, at its end.

    Attributes:
        time_s: When, at the latest if that is known.
        num_kv_tokens: How much.
    """

    time_s: float
    num_kv_tokens: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is lacking before something can run. Zero where nothing is.

    Attributes:
        num_kv_tokens: KV slots.
        held_bytes: Bytes over the budget of suspended activations.
        num_batches: Batches over the number that may stand suspended.
    """

    num_kv_tokens: int = 0
    held_bytes: float = 0.0
    num_batches: int = 0

    def without(self, batch: PrefillBatch) -> "Shortage":
        """Return what would still be lacking if this batch were gone."""
        return Shortage(
            self.num_kv_tokens - batch.num_kv_tokens,
            self.held_bytes - batch.held_bytes,
            self.num_batches - 1,
        )

    @property
    def is_covered(self) -> bool:
        """True if nothing is lacking."""
        return self.num_kv_tokens <= 0 and self.held_bytes <= 0.0 and self.num_batches <= 0


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """What batches hold for their activations, summed once for every question of a round.

    Attributes:
        total: Bytes of all of them.
        largest: Of the one that holds most.
        second: Of the next one.
    """

    total: int
    largest: int
    second: int

    @classmethod
    def of(cls, batches: Iterable[PrefillBatch]) -> "HeldBytes":
        """Sum up."""
        total = largest = second = 0
        for batch in batches:
            held_bytes = batch.held_bytes
            total += held_bytes
            if held_bytes > largest:
                largest, second = held_bytes, largest
            elif held_bytes > second:
                second = held_bytes
        return cls(total, largest, second)

    def over(self, budget: float, but: PrefillBatch | None = None) -> float:
        """Return the bytes over a budget; zero or less if it is kept.

        One batch that breaks the budget alone is not counted, the largest if there are several:
        whatever else were given up, it would still not fit.

        Args:
            budget: Bytes.
            but: One of the batches, which is going to run and does not stand suspended.
        """
        total, largest = self.total, self.largest
        if but is not None:
            total -= but.held_bytes
            if but.held_bytes == largest:
                largest = self.second
        return total - budget - (largest if largest > budget else 0)


@dataclass(frozen=True, slots=True)
class RankedBatch:
    """A batch and its place in the policy's order.

    Attributes:
        key: Of the member that is first in the order: the batch is as urgent as that one.
        candidate: That member, with what the whole batch still needs.
        batch: The batch.
    """

    key: PolicyKey
    candidate: Candidate
    batch: PrefillBatch


def choose_victims(ranked: Iterable[RankedBatch], shortage: Shortage) -> tuple[PrefillBatch, ...]:
    """Choose the least valuable batches that together cover a shortage.

    Args:
        ranked: Those that may be dropped.
        shortage: What is lacking.

    Returns:
        A set of which none could be spared, most valuable first; empty if all of them together
        are not enough.
    """
    least_first = sorted(ranked, key=lambda r: r.batch.run_s)
    least_first.sort(key=lambda r: r.key, reverse=True)  # stable: least run first among equals
    chosen: list[PrefillBatch] = []
    lacking = shortage
    for candidate in least_first:
        if lacking.is_covered:
            break
        chosen.insert(0, candidate.batch)
        lacking = lacking.without(candidate.batch)
    return _without_needless(chosen, shortage) if lacking.is_covered else ()


def _without_needless(chosen: list[PrefillBatch], shortage: Shortage) -> tuple[PrefillBatch, ...]:
    """Spare, most valuable first, whoever is not needed beside the others."""
    needed = list(chosen)
    for batch in chosen:
        lacking = shortage
        for other in needed:
            if other is not batch:
                lacking = lacking.without(other)
        if lacking.is_covered:
            needed.remove(batch)
    return tuple(needed)


def expected_wait_s(
    runnable: Iterable[RankedBatch],
    releases: Sequence[Release],
    shortage: Shortage,
    now_s: float,
) -> float:
    """Predict how long it takes until a shortage is over if nothing is dropped.

    Args:
        runnable: Started batches that can run; they will, in the policy's order.
        releases: What running requests will give back.
        shortage: What is lacking.
        now_s: Current time.

    Returns:
        Seconds; infinite if it is not foreseeable.
    """
    ends: list[tuple[float, Shortage]] = [
        (release.time_s, Shortage(num_kv_tokens=release.num_kv_tokens))
        for release in releases
        if release.time_s > now_s  # one that is overdue may take for ever
    ]
    end_s = now_s
    for ranked in sorted(runnable, key=lambda r: r.key):
        batch = ranked.batch
        if batch.has_outrun_prediction:
            break  # nobody knows when it ends, nor those behind it
        end_s += batch.remaining_s
        ends.append((end_s, Shortage(held_bytes=batch.held_bytes, num_batches=1)))
        ends.append((end_s + batch.release_s, Shortage(num_kv_tokens=batch.num_kv_tokens)))
    lacking = shortage
    for time_s, freed in sorted(ends, key=lambda end: end[0]):
        lacking = Shortage(
            lacking.num_kv_tokens - freed.num_kv_tokens,
            lacking.held_bytes - freed.held_bytes,
            lacking.num_batches - freed.num_batches,
        )
        if lacking.is_covered:
            return time_s - now_s
    return math.inf
