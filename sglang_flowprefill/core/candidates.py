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
        make: Makes a candidate; deterministic.
    """

    def __init__(self, make: Callable[[PrefillRequest], Candidate]) -> None:
        self._make = make
        self._candidates: dict[int, Candidate] = {}
        self._requests: dict[int, PrefillRequest] = {}

    def of(self, requests: Sequence[PrefillRequest]) -> list[Candidate]:
        """Return the candidates of these requests, in their order."""
        if len(self._candidates) > 2 * len(requests) + 64:
            self._forget_all_but(requests)
        try:
            return list(map(self._candidates.__getitem__, map(id, requests)))
        except KeyError:
            return [self._candidates.get(id(r)) or self._remember(r) for r in requests]

    def _remember(self, request: PrefillRequest) -> Candidate:
        self._requests[id(request)] = request
        candidate = self._candidates[id(request)] = self._make(request)
        return candidate

    def _forget_all_but(self, requests: Sequence[PrefillRequest]) -> None:
        known = {id(r): r for r in requests if id(r) in self._requests}
        self._candidates = {identity: self._candidates[identity] for identity in known}
        self._requests = known
