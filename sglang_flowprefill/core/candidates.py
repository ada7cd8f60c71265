"""Remembers what a round would otherwise compute again for every request in the queue."""

from collections.abc import Callable, Sequence

from sglang_flowprefill.core.policy import Candidate
from sglang_flowprefill.core.request import PrefillRequest


class CandidateMemo:
    """The ``Candidate`` of each waiting request, made when a round first sees the request.

    A memo, not a queue: a round reads it for the requests that it is given, and deciding with an
    empty one gives the same decisions. An entry is found by the identity of the request, which it
    keeps alive, so that no other object can have that identity meanwhile.

    Args:
        make: Makes the candidates of requests, in their order; deterministic.
    """

    def __init__(self, make: Callable[[Sequence[PrefillRequest]], list[Candidate]]) -> None:
        self._make = make
        self._candidates: dict[int, Candidate] = {}
        self._requests: list[PrefillRequest] = []  # kept alive, in no order

    def of(self, requests: Sequence[PrefillRequest]) -> list[Candidate]:
        """Return the candidates of these requests, in their order."""
        if len(self._candidates) > 2 * len(requests) + 64:
            self._forget_all_but(requests)
        try:
            return list(map(self._candidates.__getitem__, map(id, requests)))
        except KeyError:
            return self._with_new(requests)

    def _with_new(self, requests: Sequence[PrefillRequest]) -> list[Candidate]:
        """Make what is missing, all at once: a burst may be thousands."""
        candidates = self._candidates
        new = [r for r in requests if id(r) not in candidates] if candidates else requests
        made = self._make(new)
        candidates.update(zip(map(id, new), made, strict=True))
        self._requests += new
        if len(new) == len(requests):
            return made
        return list(map(candidates.__getitem__, map(id, requests)))

    def _forget_all_but(self, requests: Sequence[PrefillRequest]) -> None:
        known = self._candidates
        self._requests = [request for request in requests if id(request) in known]
        self._candidates = {id(request): known[id(request)] for request in self._requests}
