"""Scripts that drive an engine: undisturbed, in turns at every boundary, and at random."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_flowprefill.core import Decision, DropBatches, ResumeBatch, RunDecode, StartBatch, Wait
from tests.engine.engine import Engine, Request

_BOUNDARIES_BETWEEN_ARRIVALS = 8
_CONTROL = 0.003  # chance of a control message, wherever a message may come
_DROP = 0.01  # chance in a round that some unfinished prefill has to start over

Group = tuple[Request, ...]
"""Requests that arrive in one message and are prefilled in one batch."""


class Undisturbed:
    """Serves one group after the other, each from idle to idle, without any interruption.

    Args:
        groups: What to serve.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = list(groups)

    def at_boundary(self, engine: Engine) -> bool:
        """Never interrupt."""
        return False

    def when_quiet(self, engine: Engine) -> None:
        """Send the next group, or stop."""
        if engine.is_idle:
            if self._groups:
                engine.send(*self._groups.pop(0))
            else:
                engine.stop()

    def decide(self, engine: Engine, view: Any) -> Decision:
        """Prefill all that waits as one batch, then decode."""
        if view.batches:
            return ResumeBatch(view.batches[0].batch_id, "goes on")
        if _may_start(view):
            return StartBatch(tuple(view.waiting), "undisturbed")
        return RunDecode("undisturbed") if view.decode is not None else Wait("idle")


class InTurns:
    """Interrupts at every boundary and gives all work a turn: the least favourable order.

    Args:
        groups: Sent one by one, some boundaries apart, each prefilled as one batch.

    Attributes:
        num_switches: Times that another batch went on than the one before.
        num_decode_steps_inside: Decode steps that ran while a prefill stood still.
        max_batches: Most prefills that were unfinished at once.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = list(groups)
        self._group_of = {r.request_id: group for group in groups for r in group}
        self._num_rounds = 0
        self._last_turn: dict[int, int] = {}
        self._running: int | None = None
        self.num_switches = 0
        self.num_decode_steps_inside = 0
        self.max_batches = 0

    def at_boundary(self, engine: Engine) -> bool:
        """Interrupt always; now and then a new group arrives."""
        if self._groups and engine.num_boundaries % _BOUNDARIES_BETWEEN_ARRIVALS == 0:
            self._send(engine)
        return True

    def when_quiet(self, engine: Engine) -> None:
        """Send the next group, or stop."""
        if engine.is_idle:
            if self._groups:
                self._send(engine)
            else:
                engine.stop()

    def decide(self, engine: Engine, view: Any) -> Decision:
        """Every third turn to decode, then to whoever waits, then to the longest unserved."""
        self._num_rounds += 1
        self.max_batches = max(self.max_batches, len(view.batches))
        is_decode_turn = self._num_rounds % 3 == 0 or not (view.batches or _may_start(view))
        if view.decode is not None and is_decode_turn:
            self.num_decode_steps_inside += bool(view.batches)
            return RunDecode("its turn")
        if _may_start(view):
            group = self._group_of[view.waiting[0].request_id]
            members = {request.request_id for request in group}
            chosen = tuple(r for r in view.waiting if r.request_id in members)
            return StartBatch(chosen, "whoever waits")
        if view.batches:
            return self._resume(view.batches)
        return Wait("idle")

    def _resume(self, batches: Any) -> ResumeBatch:
        batch_id = min((b.batch_id for b in batches), key=lambda i: self._last_turn.get(i, 0))
        self._last_turn[batch_id] = self._num_rounds
        self.num_switches += batch_id != self._running
        self._running = batch_id
        return ResumeBatch(batch_id, "longest unserved")

    def _send(self, engine: Engine) -> None:
        engine.send(*self._groups.pop(0))


class HoldsBack:
    """Suspends one prefill half-way, serves all others from start to end, and only then resumes it.

    Args:
        held: Its request is the one that stands still.
        others: Served one after the other meanwhile.
        num_boundaries: The held prefill stops at this one, counted from its start.
        aborts: Abort the held request instead of resuming it.

    Attributes:
        num_locked_tokens: Of the prefix cache, while only the held prefill was unfinished.
    """

    def __init__(
        self,
        held: Request,
        others: Sequence[Request] = (),
        *,
        num_boundaries: int = 10,
        aborts: bool = False,
    ) -> None:
        self._held = held
        self._to_send = [held, *others]
        self._aborts = aborts
        self._boundaries_left = num_boundaries
        self.num_locked_tokens = 0

    def at_boundary(self, engine: Engine) -> bool:
        """Interrupt once, at the chosen boundary."""
        self._boundaries_left -= 1
        return self._boundaries_left == 0

    def when_quiet(self, engine: Engine) -> None:
        """Send the held request first; stop when all is done."""
        if engine.is_idle:
            if self._to_send:
                engine.send(self._to_send.pop(0))
            else:
                engine.stop()

    def decide(self, engine: Engine, view: Any) -> Decision:
        """Give the held prefill no turn between its boundary and the end of all the others."""
        if _may_start(view):
            return StartBatch((view.waiting[0],), "the next one")
        others = [b for b in view.batches if b.requests[0].request_id != self._held.request_id]
        if others:
            return ResumeBatch(others[0].batch_id, "runs to its end")
        if view.decode is not None:
            return RunDecode("runs to its end")
        if not view.batches:
            return Wait("idle")
        self.num_locked_tokens = max(self.num_locked_tokens, engine.num_locked_tokens)
        if self._to_send:
            engine.send(self._to_send.pop(0))
        elif self._aborts:
            engine.abort(self._held.request_id)
        else:
            return ResumeBatch(view.batches[0].batch_id, "all others are done")
        return Wait("for the message to be read")


@dataclass
class RandomEpisode:
    """Random arrivals, aborts, control messages, interruptions and decisions, from one seed.

    Args:
        rng: Seeded.
        requests: Arrive in this order, at random moments.
        follows_policy: FlowPrefill's own policy decides, instead of the dice.

    Attributes:
        aborted: Ids of requests that were told to abort, finished or not.
        num_dropped: Batches that were dropped by a decision.
        num_control_messages: Requests to flush the cache, or that want a quiet engine.
    """

    rng: random.Random
    requests: list[Request]
    follows_policy: bool
    aborted: set[str] = field(default_factory=set)
    num_dropped: int = 0
    num_control_messages: int = 0

    def __post_init__(self) -> None:
        self._pending = list(self.requests)
        self._sent: list[str] = []
        self._interrupt = self.rng.choice((0.05, 0.3, 0.7, 1.0))
        self._arrive = self.rng.choice((0.02, 0.1, 0.5))
        self._abort = self.rng.choice((0.0, 0.01, 0.05))
        self._decode = self.rng.choice((0.1, 0.5))

    def at_boundary(self, engine: Engine) -> bool:
        """Interrupt for a message, or for no reason."""
        return self._disturb(engine) or self.rng.random() < self._interrupt

    def when_quiet(self, engine: Engine) -> None:
        """Send the next requests, or stop."""
        if engine.is_idle:
            if self._pending:
                self._send(engine)
            else:
                engine.stop()

    def decide(self, engine: Engine, view: Any) -> Decision:
        """Choose any work at random, or what the policy says."""
        self._disturb(engine)  # messages come between decode steps too
        if self.follows_policy:
            decision: Decision = engine.own_decision()
        else:
            decision = self._draw(view)
        if isinstance(decision, DropBatches):
            self.num_dropped += len(decision.batch_ids)
        return decision

    def _draw(self, view: Any) -> Decision:
        if view.decode is not None and self.rng.random() < self._decode:
            return RunDecode("random")
        if view.batches and self.rng.random() < _DROP:
            return DropBatches((self.rng.choice(view.batches).batch_id,), "random")
        choices: list[Decision] = [
            ResumeBatch(b.batch_id, "random") for b in view.batches if not b.num_missing_tokens
        ]
        if _may_start(view):
            num_members = self.rng.randint(1, min(3, len(view.waiting)))
            members = self.rng.sample(list(view.waiting), num_members)
            choices.append(StartBatch(tuple(members), "random"))
        if choices:
            return self.rng.choice(choices)
        if view.decode is not None:
            return RunDecode("nothing else")
        if view.batches:  # parts of prompts, in one another's way
            return DropBatches((view.batches[0].batch_id,), "nothing else can run")
        return Wait("nothing to do")

    def _disturb(self, engine: Engine) -> bool:
        """Send at most one message, perhaps."""
        if self._pending and self.rng.random() < self._arrive:
            self._send(engine)
            return True
        if self._sent and self.rng.random() < self._abort:
            request_id = self.rng.choice(self._sent)
            self.aborted.add(request_id)
            engine.abort(request_id)
            return True
        if self._sent and self.rng.random() < _CONTROL:
            self.num_control_messages += 1
            self.rng.choice((engine.ask_to_flush, engine.ask_for_weights))()
            return True
        return False

    def _send(self, engine: Engine) -> None:
        together = self._pending[: self.rng.choice((1, 1, 2))]
        del self._pending[: len(together)]
        self._sent += [request.request_id for request in together]
        engine.send(*together)


def _may_start(view: Any) -> bool:
    return bool(view.waiting) and view.blocked is None
