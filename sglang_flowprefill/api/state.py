"""What ``GET /flowprefill/state`` says: one picture of a scheduler, as records and as JSON.

The records are the schema; ``docs/reference/state.md`` is generated from them. A reader may rely
on every field of its version: fields may be added under the same number, and a field that changes
its meaning or goes takes a new one. Times ending in ``_s`` without another word are seconds of the
scheduler's clock, which only compares with itself.
"""

import msgspec

SCHEMA_VERSION = 1

STATE_PATH = "/flowprefill/state"
PAGE_PATH = "/flowprefill"


class SloClassState(msgspec.Struct, frozen=True):
    """One SLO class since the start of the server.

    Attributes:
        name: As in the class file.
        ttft_slo_ms: TTFT objective in milliseconds; null for a class that requests brought.
        num_arrived: Requests that arrived.
        num_waiting: Requests that wait for their prefill now.
        num_finished: First tokens.
        num_attained: First tokens within the objective.
        num_rejected: Requests that admission refused.
        num_degraded: Requests that admission put behind all others.
    """

    name: str
    ttft_slo_ms: float | None
    num_arrived: int
    num_waiting: int
    num_finished: int
    num_attained: int
    num_rejected: int
    num_degraded: int


class WaitingState(msgspec.Struct, frozen=True):
    """One request that waits for its prefill.

    Attributes:
        request_id: SGLang's request id.
        slo_class: Its SLO class.
        num_tokens: Prompt tokens to compute.
        waited_s: Seconds since it arrived.
        slack_s: Seconds until its first token is due; negative if that is past.
    """

    request_id: str
    slo_class: str
    num_tokens: int
    waited_s: float
    slack_s: float


class PrefillState(msgspec.Struct, frozen=True):
    """One prefill that was started and has not ended.

    Attributes:
        batch_id: Counts up over the life of the server.
        request_ids: Its members.
        slo_class: Of its first member.
        state: ``running``, or ``suspended`` at an operator boundary.
        num_tokens: Tokens to compute.
        num_boundaries: Operator boundaries passed in its current forward pass.
        predicted_s: Predicted seconds of computation, suspensions excluded.
        run_s: Seconds computed so far.
        since_s: When the present state began.
        slack_s: Seconds until its first member's first token is due; negative if that is past.
        num_preemptions: How often another prefill was put in front of it.
        held_bytes: Bytes of activations that it keeps, beside its KV.
        is_out_of_memory: True if its next chunk finds no memory.
    """

    batch_id: int
    request_ids: list[str]
    slo_class: str
    state: str
    num_tokens: int
    num_boundaries: int
    predicted_s: float
    run_s: float
    since_s: float
    slack_s: float
    num_preemptions: int
    held_bytes: int
    is_out_of_memory: bool


class PrefillSlice(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of time in which one prefill ran; in JSON an array in this order.

    Attributes:
        batch_id: The prefill.
        slo_class: Of its first member.
        start_s: Begin.
        end_s: End.
        end: ``yield`` (then it stood suspended), ``chunk finished``, ``finished``, ``cancelled``
            or ``dropped``.
    """

    batch_id: int
    slo_class: str
    start_s: float
    end_s: float
    end: str


class RoundState(msgspec.Struct, frozen=True, array_like=True):
    """One scheduling round; in JSON an array in this order.

    Attributes:
        time_s: When it began.
        cause: Kind of the first event that it was for.
        decision: What it decided.
        duration_s: Seconds that deciding took.
    """

    time_s: float
    cause: str
    decision: str
    duration_s: float


class DecodeSlice(msgspec.Struct, frozen=True, array_like=True):
    """One decode step; in JSON an array in this order.

    Attributes:
        start_s: Begin.
        end_s: End.
        num_requests: Requests that got a token.
    """

    start_s: float
    end_s: float
    num_requests: int


class BlockingState(msgspec.Struct, frozen=True):
    """How long the last yields took, from an upper bound of when the stop was wanted.

    Attributes:
        num_yields: Yields that the numbers are of: the last 512 at most.
        p50_s: Median seconds.
        p99_s: 99th percentile.
        max_s: The longest.
    """

    num_yields: int
    p50_s: float
    p99_s: float
    max_s: float


class PredictionState(msgspec.Struct, frozen=True):
    """How wrong the predictor was lately.

    Attributes:
        num_observations: Prefills that the numbers are of.
        median_absolute_error: Median of abs(actual - predicted) / actual.
        bias: Median of predicted / actual - 1.
    """

    num_observations: int
    median_absolute_error: float
    bias: float


class ServerState(msgspec.Struct, frozen=True):
    """One picture of one scheduler.

    Attributes:
        schema_version: Of this schema.
        version: Release of FlowPrefill.
        policy: Order of prefills.
        granularity: Where prefills may be suspended.
        time_s: When the picture was taken.
        time_unix_s: The same moment in seconds since 1970.
        started_s: When the scheduler began to serve.
        num_rounds: Scheduling rounds.
        num_events: Events, by kind.
        num_preemptions: Times an unfinished prefill made way for another.
        num_resumes: Times a suspended prefill went on, also with its next chunk.
        num_prefills: Prefill batches that ended with all their first tokens.
        num_cancelled: Prefill batches whose requests were all aborted.
        num_restarts: Requests whose unfinished prefill was dropped for memory.
        num_decode_steps: Decode steps.
        num_waiting: Requests that wait for their prefill.
        num_decoding: Requests past their prefill, at the last round.
        suspended_bytes: Bytes of activations that suspended prefills hold.
        rounds_per_s: Rounds a second over the history.
        history_s: Seconds that the history reaches back, unless it would be more than 500 entries.
        classes: Each SLO class.
        waiting: The first 100 of the waiting requests, in order of arrival in the queue.
        prefills: Each unfinished prefill, in order of their start.
        slices: History of prefills that ran, oldest first.
        rounds: History of rounds, oldest first.
        decodes: History of decode steps, oldest first.
        blocking: Time from the wish to stop to the stop.
        prediction: Error of the predictor; null before the first observation.
    """

    version: str
    policy: str
    granularity: str
    time_s: float
    time_unix_s: float
    started_s: float
    num_rounds: int
    num_events: dict[str, int]
    num_preemptions: int
    num_resumes: int
    num_prefills: int
    num_cancelled: int
    num_restarts: int
    num_decode_steps: int
    num_waiting: int
    num_decoding: int
    suspended_bytes: int
    rounds_per_s: float
    history_s: float
    classes: list[SloClassState]
    waiting: list[WaitingState]
    prefills: list[PrefillState]
    slices: list[PrefillSlice]
    rounds: list[RoundState]
    decodes: list[DecodeSlice]
    blocking: BlockingState
    prediction: PredictionState | None
    schema_version: int = SCHEMA_VERSION
