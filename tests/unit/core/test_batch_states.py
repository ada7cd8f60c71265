"""The life of a prefill batch: what is legal, and how its time is accounted."""

from itertools import product

import pytest

from sglang_flowprefill.core import BatchState, PrefillBatch
from sglang_flowprefill.core.batch import BatchChange
from sglang_flowprefill.errors import IllegalTransitionError
from sglang_flowprefill.testing import make_batch, make_request

LEGAL = {
    ("ready", "resume"): "running",
    ("suspended", "resume"): "running",
    ("running", "yield"): "suspended",
    ("running", "finish"): "finished",
    ("ready", "cancel"): "cancelled",
    ("suspended", "cancel"): "cancelled",
    ("running", "fail"): "failed",
}


def batch_in(state):
    """Return a batch that is in this state without a history."""
    return PrefillBatch(7, (make_request(),), predicted_s=1.0, state=state)


@pytest.mark.parametrize(("state", "change"), list(product(BatchState, BatchChange)))
def test_every_change_is_legal_or_refused(state, change):
    """The diagram in the module's docstring is what happens, for every pair."""
    batch = batch_in(state)
    expected = LEGAL.get((state.value, change.value))
    if expected is None:
        with pytest.raises(IllegalTransitionError) as caught:
            batch.apply(change, now_s=5.0)
        assert str(caught.value) == f"prefill batch 7 cannot {change.value} while {state.value}"
        assert (batch.state, batch.run_s) == (state, 0.0)
    else:
        batch.apply(change, now_s=5.0)
        assert batch.state.value == expected


def test_run_time_is_the_sum_of_the_slices():
    """Suspensions do not count, whatever their length."""
    batch = make_batch(make_request(), make_request("other"))
    history = [  # powers of two: sums are exact
        (BatchChange.RESUME, 1.0),
        (BatchChange.YIELD, 1.5),
        (BatchChange.RESUME, 64.0),
        (BatchChange.YIELD, 64.25),
        (BatchChange.RESUME, 64.25),
        (BatchChange.FINISH, 66.25),
    ]
    for change, now_s in history:
        batch.apply(change, now_s)
    assert batch.run_s == 0.5 + 0.25 + 2.0


def test_cancelled_batch_keeps_what_it_has_run():
    """Time in suspension is not added by the cancellation."""
    batch = make_batch(make_request(), run_s=0.25)
    batch.apply(BatchChange.CANCEL, now_s=9.0)
    assert batch.run_s == 0.25


@pytest.mark.parametrize(("run_s", "remaining_s"), [(0.0, 2.0), (0.5, 1.5), (2.0, 0.0), (3.0, 0.0)])
def test_remaining_time_never_goes_below_zero(run_s, remaining_s):
    """A batch that outruns its prediction has nothing left, by the prediction."""
    batch = PrefillBatch(0, (make_request(),), predicted_s=2.0, run_s=run_s)
    assert batch.remaining_s == remaining_s


def test_tokens_are_those_computed():
    """Cached tokens are not counted."""
    first = make_request("a", num_uncached_tokens=30, num_cached_tokens=1000)
    assert make_batch(first, make_request("b", num_uncached_tokens=12)).num_uncached_tokens == 42


def test_batches_are_compared_by_identity():
    """Two batches with equal contents are still two batches."""
    request = make_request()
    assert make_batch(request) != make_batch(request)
