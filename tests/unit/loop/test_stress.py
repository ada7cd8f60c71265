"""The least favourable decisions: everybody takes turns."""

from sglang_flowprefill.core import (
    DecodeView,
    DropBatches,
    PrefillDecider,
    ResumeBatch,
    RoundView,
    RunDecode,
    SEdf,
    StartBatch,
    Wait,
)
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.loop.stress import StressDecider
from sglang_flowprefill.testing import MS_PER_TOKEN, make_batch, make_request

DECIDER = PrefillDecider(SEdf(), MS_PER_TOKEN, BatchLimits(512), max_restarts=1)
DECODE = DecodeView(due_s=99.0)


class Fixed:
    """A decider that learns nothing."""

    present = DECIDER

    def decide(self, view, now_s):
        """Decide."""
        return DECIDER.decide(view, now_s)


def batches(*ids):
    """Return suspended batches."""
    return [make_batch(make_request(str(i)), batch_id=i, run_s=0.01) for i in ids]


def turns(decider, view, number):
    """Return the batches that run in so many rounds, with None for a decode step."""
    decisions = [decider.decide(view, 5.0) for _ in range(number)]
    return [getattr(decision, "batch_id", None) for decision in decisions]


def test_all_batches_take_turns_and_decode_steps_come_in_between():
    """Nobody runs twice before the others have run."""
    view = RoundView(batches=batches(1, 2, 3), decode=DECODE)
    assert turns(StressDecider(Fixed()), view, 8) == [None, 1, None, 2, None, 3, None, 1]


def test_a_newcomer_is_before_those_that_have_run_and_the_gone_are_forgotten():
    """The line is of those that are there."""
    decider = StressDecider(Fixed())
    assert turns(decider, RoundView(batches=batches(1, 2)), 2) == [1, 2]
    assert turns(decider, RoundView(batches=batches(2, 3)), 3) == [3, 2, 3]


def test_whoever_waits_starts_at_once_and_everything_is_reviewed_at_the_next_boundary():
    """A review that is due at once is what suspends a prefill at every boundary."""
    decider, waiting = StressDecider(Fixed()), [make_request("a"), make_request("b")]
    start = decider.decide(RoundView(waiting, batches(1)), 5.0)
    assert isinstance(start, StartBatch)
    assert ([r.request_id for r in start.requests], start.review_s) == (["a"], 5.0)
    resume = decider.decide(RoundView(batches=batches(1)), 6.0)
    assert isinstance(resume, ResumeBatch)
    assert resume.review_s == 6.0


def test_what_is_no_matter_of_taste_is_left_to_the_policy():
    """A batch without memory does not run, drops happen, and with nothing to do it waits."""
    decider = StressDecider(Fixed())
    short, other = batches(1, 2)
    short.num_missing_tokens = 9
    waiting = [make_request("a")]
    assert turns(decider, RoundView(waiting, [short, other]), 3) == [2, 2, 2]
    other.num_missing_tokens = other.num_kv_tokens = 9
    assert isinstance(decider.decide(RoundView(batches=[short, other]), 5.0), DropBatches)
    assert isinstance(decider.decide(RoundView(), 5.0), Wait)
    assert isinstance(decider.decide(RoundView(decode=DECODE), 5.0), RunDecode)
