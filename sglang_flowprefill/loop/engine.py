"""What the loop asks of the machine below it.

Two machines implement ``Engine``: SGLang's scheduler process (``adapter/serving/engine.py``) and a
simulated one with a virtual clock (``sim/engine.py``). The same loop serves on both.

Who calls what, when:

* The loop calls the engine; the engine never calls the loop. What an engine finds out between two
  calls (a new request, an abort, a message that needs a quiet engine) it puts down, and the loop
  picks it up with ``take_arrivals``, ``wants_quiet`` and ``StartedPrefill.is_aborted``.
* Every call comes from one thread. ``run`` alone lets an event source be asked
  (``EventSources.has_event``), at operator boundaries, and nothing else may happen there.
* A message is taken in by ``EventSources.take`` only, between two decisions, while no forward pass
  runs. Taking it in may queue, abort and answer requests. It never runs a forward pass, never
  decides, and never touches the table of prefills in flight.
* ``run``, ``end_forward`` and ``decode`` are not re-entered.

Ranks that run in parallel each have an engine and a loop, which make the same calls in the same
order; what depends on a clock or a socket goes through ``Agreement``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from sglang_flowprefill.core import PrefillBatch, PrefillRequest, Reject, Slo

Value = TypeVar("Value")


class StartedPrefill(Protocol):
    """What an engine keeps of one prefill that it has started.

    It is one forward pass, or several in sequence over the chunks of one prompt. Between two of
    them it owns memory and no stack.

    Attributes:
        requests: Members that are not through their prefill yet, by what is left of them.
        num_kv_tokens: KV slots that dropping it would give back.
        held_bytes: Bytes of activations that it keeps while it stands suspended.
        max_new_tokens: Longest generation that a member may ask for, in tokens.
        is_between_forwards: True while the next chunk has no memory yet.
        has_more_chunks: True if this forward pass is not the last.
        is_aborted: True once every member has been aborted.
        num_boundaries: Operator boundaries passed in this forward pass.
    """

    @property
    def requests(self) -> tuple[PrefillRequest, ...]: ...  # noqa: D102 (documented above)
    @property
    def num_kv_tokens(self) -> int: ...  # noqa: D102
    @property
    def held_bytes(self) -> int: ...  # noqa: D102
    @property
    def max_new_tokens(self) -> int: ...  # noqa: D102
    @property
    def is_between_forwards(self) -> bool: ...  # noqa: D102
    @property
    def has_more_chunks(self) -> bool: ...  # noqa: D102
    @property
    def is_aborted(self) -> bool: ...  # noqa: D102
    @property
    def num_boundaries(self) -> int: ...  # noqa: D102


Started = TypeVar("Started", bound=StartedPrefill)


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why an engine did not start something.

    Attributes:
        num_missing_tokens: KV slots that it lacks; at least 1, also where it was turned away for
            want of something else.
    """

    num_missing_tokens: int


class DecodingRequest(NamedTuple):
    """One request past its prefill.

    Attributes:
        slo: Its objectives.
        joined_s: Time of its first token.
        num_tokens_left: Tokens that it may still generate.
        num_kv_tokens: KV slots that come free at its end.
    """

    slo: Slo
    joined_s: float
    num_tokens_left: int
    num_kv_tokens: int


class Completion(NamedTuple):
    """The last token of a request.

    Attributes:
        request: The request.
        end: Why it ended: ``length``, ``stop``, ``abort``.
    """

    request: PrefillRequest
    end: str


@dataclass(frozen=True, slots=True)
class ForwardEnd:
    """What the end of a forward pass brought.

    Attributes:
        first_tokens: Requests whose first token counts for attainment.
        completions: Requests that need no further token.
    """

    first_tokens: Sequence[PrefillRequest] = ()
    completions: Sequence[Completion] = ()


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """What a decode step brought.

    Attributes:
        num_requests: Requests that were running when it began.
        completions: Requests that got their last token.
    """

    num_requests: int
    completions: Sequence[Completion] = ()


class Engine(Protocol[Started]):
    """The primitives of the loop.

    Attributes:
        is_closing: True once the server shall end.
        is_paused: True while nothing may run.
        is_idle: True if no request is anywhere in the engine.
        waiting: Requests that wait for their prefill, in order of arrival. Made anew for every
            call: the caller may keep it.
        running: Requests past their prefill that want a next token.
        wants_quiet: True if a message is held back until no prefill is in flight.
    """

    @property
    def is_closing(self) -> bool: ...  # noqa: D102 (documented above)
    @property
    def is_paused(self) -> bool: ...  # noqa: D102
    @property
    def is_idle(self) -> bool: ...  # noqa: D102
    @property
    def waiting(self) -> Sequence[PrefillRequest]: ...  # noqa: D102
    @property
    def running(self) -> Sequence[DecodingRequest]: ...  # noqa: D102
    @property
    def wants_quiet(self) -> bool: ...  # noqa: D102

    def take_arrivals(self) -> Sequence[PrefillRequest]:
        """Return the new requests since the last call; one that was aborted since waits no more."""
        ...

    def dispatch_held(self) -> None:
        """Act on the messages that were held back. No prefill is in flight."""
        ...

    def degrade(self, requests: Sequence[PrefillRequest]) -> None:
        """Have waiting requests served after all others."""
        ...

    def refuse(self, refused: Sequence[tuple[PrefillRequest, Reject]]) -> None:
        """Take waiting requests out of the queue and answer each with its verdict."""
        ...

    def start(self, requests: Sequence[PrefillRequest]) -> Started | Shortfall:
        """Take memory for waiting requests and form their batch.

        The engine may leave later ones out; the first is in it, or there is a shortfall.
        """
        ...

    def start_next_chunk(self, work: Started) -> Shortfall | None:
        """Take memory for the next forward pass of a prompt in chunks."""
        ...

    def run(self, work: Started, *, is_preemptible: bool) -> bool:
        """Run a prefill until its forward pass ends or an event wants the scheduler.

        Args:
            work: The prefill; it has a forward pass.
            is_preemptible: False passes all boundaries without looking for events.

        Returns:
            True if the forward pass has ended.

        Raises:
            ForwardError: The forward pass raised. Its stack is gone, its memory is not.
        """
        ...

    def end_forward(self, work: Started, batch: PrefillBatch) -> ForwardEnd:
        """Give out what a forward pass that ended has computed.

        Members that are through decode from now on. One with more chunks stays in ``work``.

        Args:
            work: The prefill.
            batch: Its account, with the time that it ran.
        """
        ...

    def requeue(self, work: Started) -> None:
        """Abandon a prefill and give its memory back; its requests start over later."""
        ...

    def release_aborted(self, work: Started) -> None:
        """Abandon a prefill whose members were all aborted, give its memory back, answer them."""
        ...

    def release_failed(self, work: Started, error: Exception) -> None:
        """Give the memory of a prefill back whose forward pass raised; answer its requests."""
        ...

    def has_decode_memory(self) -> bool:
        """Tell whether the next decode step finds the memory that it needs."""
        ...

    def decode(self) -> DecodeStep:
        """Run one decode step of all running requests; retract some if there is no memory."""
        ...

    def on_idle(self) -> None:
        """Do the housekeeping of a moment in which nothing can run."""
        ...

    def on_paused(self) -> None:
        """Book a pass of the loop in which nothing may run."""
        ...

    def after_pass(self) -> None:
        """Check the engine's own invariants after a pass of the loop."""
        ...


class Agreement(Protocol):
    """How the ranks of one server come to one decision.

    Both methods are collectives: all ranks call them equally often and in the same order.
    """

    def agree(self, decide: Callable[[], Value]) -> Value:
        """Return on every rank what ``decide`` returns on the leader."""
        ...

    def require_equal(self, what: str, value: object) -> None:
        """Raise ``RankError`` if the ranks have different values."""
        ...


class Alone:
    """The agreement of a server with one rank."""

    def agree(self, decide: Callable[[], Value]) -> Value:
        """Decide."""
        return decide()

    def require_equal(self, what: str, value: object) -> None:
        """Accept: there is nobody to differ from."""
