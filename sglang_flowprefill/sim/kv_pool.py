"""The KV slots of the simulated machine: who holds how many, and which prefixes are cached.

Slots come in pages. A prompt's prefix is a sequence of blocks with identities; blocks that were
computed stay cached after their request, and give way, least recently used first, to whoever needs
slots. A block that a request in the machine uses is locked.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence

Blocks = Sequence[tuple[int, int]]
"""Identity and tokens of the blocks at the head of a prompt. An identity stands for all before."""


class KvPool:
    """A number of slots that is never exceeded.

    Args:
        num_tokens: Slots in all; None for as many as anybody wants.
        page_tokens: Slots of a page.

    Attributes:
        num_used: Slots that requests hold, shared ones once.
        max_used: Most slots that were ever held.
        num_evicted: Cached slots that gave way so far.
    """

    def __init__(self, num_tokens: int | None, page_tokens: int = 1) -> None:
        self._num_tokens = num_tokens
        self._page_tokens = page_tokens
        self._held: dict[str, int] = {}
        self._locks: dict[str, list[int]] = {}
        self._num_lockers: Counter[int] = Counter()
        self._cached: OrderedDict[int, int] = OrderedDict()  # least recently used first
        self._num_cached = 0
        self._num_locked = 0
        self.num_used = 0
        self.max_used = 0
        self.num_evicted = 0

    def num_missing(self, num_tokens: int) -> int:
        """Return how many slots lack for so many more; zero if they fit."""
        if self._num_tokens is None:
            return 0
        return max(self.num_used + self._in_pages(num_tokens) - self._num_tokens, 0)

    def held_by(self, request_id: str) -> int:
        """Return the slots that a request holds or shares."""
        shared = sum(self._cached[block_id] for block_id in self._locks.get(request_id, ()))
        return self._held.get(request_id, 0) + shared

    def take(self, request_id: str, num_tokens: int) -> None:
        """Give a request that many more. They must fit."""
        assert self.num_missing(num_tokens) == 0, "KV over budget"
        num_tokens = self._in_pages(num_tokens)
        self._held[request_id] = self._held.get(request_id, 0) + num_tokens
        self.num_used += num_tokens
        self.max_used = max(self.max_used, self.num_used)
        self._evict()

    def give_back(self, request_id: str) -> None:
        """Take everything from a request; what it computed of its prefix stays cached."""
        self.num_used -= self._held.pop(request_id, 0)
        self.unlock(request_id)

    # ---- prefixes ----

    def num_cached(self, blocks: Blocks) -> int:
        """Return how many tokens at the head of a prompt are cached."""
        return sum(num_tokens for _, num_tokens in self._hits(blocks))

    def lock(self, request_id: str, blocks: Blocks) -> int:
        """Keep what is cached of a prefix for a request; return how many tokens that is."""
        hits = self._hits(blocks)
        self._lock(request_id, [block_id for block_id, _ in hits])
        return sum(num_tokens for _, num_tokens in hits)

    def unlock(self, request_id: str) -> None:
        """Let a request's prefix go."""
        for block_id in self._locks.pop(request_id, ()):
            self._num_lockers[block_id] -= 1
            if not self._num_lockers[block_id]:
                del self._num_lockers[block_id]
                self.num_used -= self._cached[block_id]
                self._num_locked -= self._cached[block_id]
                self._cached.move_to_end(block_id)

    def keep(self, request_id: str, blocks: Blocks) -> None:
        """Cache the prefix that a request has computed; its slots change from own to shared."""
        new = [(block_id, num) for block_id, num in blocks if block_id not in self._cached]
        for block_id, num_tokens in new:
            if self._held.get(request_id, 0) < num_tokens:
                return
            self._held[request_id] -= num_tokens
            self.num_used -= num_tokens
            self._cached[block_id] = num_tokens
            self._num_cached += num_tokens
            self._lock(request_id, [block_id])

    def _hits(self, blocks: Blocks) -> list[tuple[int, int]]:
        hits = []
        for block_id, num_tokens in blocks:
            if self._cached.get(block_id) != num_tokens:
                break
            hits.append((block_id, num_tokens))
        return hits

    def _lock(self, request_id: str, block_ids: Sequence[int]) -> None:
        self._locks.setdefault(request_id, []).extend(block_ids)
        for block_id in block_ids:
            if not self._num_lockers[block_id]:
                self.num_used += self._cached[block_id]
                self._num_locked += self._cached[block_id]
            self._num_lockers[block_id] += 1
        self.max_used = max(self.max_used, self.num_used)

    def _evict(self) -> None:
        """Drop unlocked blocks, least recently used first, until all fits."""
        if self._num_tokens is None or not self._cached:
            return
        num_over = self.num_used - self._num_locked + self._num_cached - self._num_tokens
        victims = []
        for block_id, num_tokens in self._cached.items():
            if num_over <= 0:
                break
            if block_id not in self._num_lockers:
                victims.append(block_id)
                num_over -= num_tokens
        for block_id in victims:
            num_tokens = self._cached.pop(block_id)
            self._num_cached -= num_tokens
            self.num_evicted += num_tokens

    def _in_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_tokens) * self._page_tokens
