"""The KV slots of the simulated machine, and who holds how many."""


class KvPool:
    """A number of slots that is never exceeded.

    Args:
        num_tokens: Slots in all; None for as many as anybody wants.

    Attributes:
        num_used: Slots in use.
        max_used: Most slots that were ever in use.
    """

    def __init__(self, num_tokens: int | None) -> None:
        self._num_tokens = num_tokens
        self._held: dict[str, int] = {}
        self.num_used = 0
        self.max_used = 0

    def num_missing(self, num_tokens: int) -> int:
        """Return how many slots lack for so many more; zero if they fit."""
        if self._num_tokens is None:
            return 0
        return max(self.num_used + num_tokens - self._num_tokens, 0)

    def held_by(self, request_id: str) -> int:
        """Return the slots of a request."""
        return self._held.get(request_id, 0)

    def take(self, request_id: str, num_tokens: int) -> None:
        """Give a request that many more. They must fit."""
        assert self.num_missing(num_tokens) == 0, "KV over budget"
        self._held[request_id] = self.held_by(request_id) + num_tokens
        self.num_used += num_tokens
        self.max_used = max(self.max_used, self.num_used)

    def give_back(self, request_id: str) -> None:
        """Take everything from a request."""
        self.num_used -= self._held.pop(request_id)
