"""When a decode step runs beside prefills. One token is 1 ms of prefill."""

import math

import pytest

from sglang_flowprefill.core import (
    DecodePacing,
    DecodeView,
    PrefillDecider,
    ResumeBatch,
    RoundView,
    RunDecode,
    RunningRequest,
    SEdf,
    Slo,
    StartBatch,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.testing import MS_PER_TOKEN, make_batch, make_request

SCHEDULER = PrefillDecider(SEdf(), MS_PER_TOKEN, BatchLimits(512))

# ---- when it is due ----


@pytest.mark.parametrize(
    ("running", "step_s", "blocking_s", "due_s"),
    [
        pytest.param([(9.9, 0.2)], 0.0, 0.0, 10.1, id="last token plus objective"),
        pytest.param([(9.9, 0.2)], 0.02, 0.0, 10.08, id="less what the step takes"),
        pytest.param([(9.9, 0.2)], 0.02, 0.03, 10.05, id="less the way to the next boundary"),
        pytest.param([(9.9, 0.2), (9.8, 0.2)], 0.0, 0.0, 10.0, id="the oldest token"),
        pytest.param([(9.9, 0.05), (9.8, 0.2)], 0.0, 0.0, 9.95, id="the tightest objective"),
        pytest.param(
            [(9.9, 0.04, False, 0.04)], 0.04, 0.0, 9.91, id="prefills keep a fifth of the machine"
        ),
        pytest.param(
            [(9.9, 0.001, False, 0.2)], 0.04, 0.0, 9.94, id="and half of it against a claim"
        ),
        pytest.param(
            [(9.9, 0.001, False, 0.05)], 0.04, 0.0, 9.91, id="what the server promises is no claim"
        ),
        pytest.param([(9.0, 0.1)], 0.04, 0.0, 9.91, id="however late the step is"),
    ],
)
def test_a_step_is_due_when_the_first_token_would_otherwise_be_late(
    running, step_s, blocking_s, due_s
):
    """The last step ended at 9.9 s; each row is the running requests' last token and objective."""
    pacing = DecodePacing(blocking_s=blocking_s, min_prefill_share=0.2)
    view = pacing.view([RunningRequest(*row) for row in running], 9.9, step_s)
    assert view.due_s == pytest.approx(due_s)
    assert view.limit_s == view.due_s, "by default it waits for nobody"


def test_a_step_may_wait_up_to_a_multiple_of_its_objective_unless_its_class_goes_first():
    """One running request whose decoding goes first is enough."""
    pacing = DecodePacing(max_delay_factor=3.0)
    patient, first = RunningRequest(10.0, 0.2), RunningRequest(10.0, 0.5, decode_first=True)
    assert pacing.view([patient], 9.0, 0.1) == DecodeView(
        due_s=pytest.approx(10.1), step_s=0.1, limit_s=pytest.approx(10.5)
    )
    assert pacing.view([patient, first], 9.0, 0.1).limit_s == pytest.approx(10.4)


def test_objectives_come_from_the_request_or_the_server():
    """A class without a TPOT objective has the default one."""
    assert RunningRequest.of(Slo(1.0), 5.0, 0.2) == RunningRequest(5.0, 0.2, default_tpot_s=0.2)
    own = Slo(1.0, tpot_s=0.05, decode_first=True)
    assert RunningRequest.of(own, 5.0, 0.2) == RunningRequest(
        5.0, 0.05, decode_first=True, default_tpot_s=0.2
    )


# ---- first tokens before decode steps ----


def decide(decode, *, slack_s, now_s=10.0, started=True):
    """Decide with one prefill whose first token can wait for so long."""
    request = make_request(
        "tight", arrival_s=now_s, ttft_slo_s=0.1 + slack_s, num_uncached_tokens=100
    )
    batch = make_batch(request)
    view = {"batches": [batch], "current": batch} if started else {"waiting": [request]}
    return SCHEDULER.decide(RoundView(decode=decode, **view), now_s)


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize(
    ("slack_s", "waits"), [(0.049, True), (0.02, True), (0.051, False), (0.0, False), (-1.0, False)]
)
def test_a_due_step_waits_if_it_would_make_a_first_token_late(slack_s, waits, started):
    """Not if there is time for both, and not for one that is late anyway."""
    decode = DecodeView(due_s=10.0, step_s=0.05, limit_s=10.4)
    decision = decide(decode, slack_s=slack_s, started=started)
    assert isinstance(decision, ResumeBatch if started else StartBatch) is waits
    if waits:
        assert decision.review_s == 10.4
    else:
        assert decision == RunDecode("decode step due")


def test_from_its_limit_on_a_step_waits_for_nobody():
    """However many tight prompts there are, running requests get their tokens."""
    decode = DecodeView(due_s=9.0, step_s=0.05, limit_s=10.0)
    assert decide(decode, slack_s=0.02) == RunDecode("decode step due")
    assert isinstance(decide(decode, slack_s=0.02, now_s=9.99), ResumeBatch)


def test_a_step_of_unknown_length_does_not_wait():
    """Without a prediction there is nothing to weigh."""
    assert decide(DecodeView(due_s=10.0), slack_s=1e-9) == RunDecode("decode step due")


def test_a_step_that_is_not_due_is_not_weighed():
    """The prefill goes on, and nothing asks for a review."""
    decision = decide(DecodeView(due_s=10.1, step_s=0.05), slack_s=0.02)
    assert decision == ResumeBatch(0, "current prefill goes on", math.inf)


def test_a_due_step_with_nothing_to_prefill_runs():
    """There is nobody to wait for."""
    view = RoundView(decode=DecodeView(due_s=9.0, step_s=0.05))
    assert SCHEDULER.decide(view, 10.0) == RunDecode("decode step due")
