"""A workload is prepared in one order, and its name keeps the trace's caveat."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from bench.workloads.prompts import UniquePrompts
from bench.workloads.trace_file import write_trace
from bench.workloads.workload import WorkloadSpec


def test_rate_holds_after_cutting_and_length_scaling(tmp_path):
    """The rate is that of the cut workload, whatever the rest of the trace does."""
    full = WorkloadSpec(num_requests=40, seed=2).build()
    path = tmp_path / "t.csv"
    write_trace(path, full.requests)
    spec = WorkloadSpec(trace=path, num_requests=10, rate_per_s=1.5, length_scale=0.25)
    workload = spec.build()
    assert len(workload.requests) == 10
    assert workload.rate_per_s == pytest.approx(1.5)
    assert workload.requests[3].num_input_tokens == round(full.requests[3].num_input_tokens / 4)


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("window_reconstructed.csv.gz", "window_reconstructed (reconstructed)"),
        ("A_SYNTHETIC_10min.csv", "A_SYNTHETIC_10min (synthetic)"),
        ("azure.csv.gz", "azure"),
        (None, "built-in generator (QwenTrace-like)"),
    ],
)
def test_origin_keeps_the_caveat(tmp_path, name, origin):
    """Reconstructed, synthetic and generated workloads say so; a recorded one needs not."""
    assert WorkloadSpec(trace=name and tmp_path / name).origin == origin


def test_a_window_goes_on_at_the_head_of_the_trace(tmp_path):
    """Arrivals stay in order, and each request is used once."""
    full = WorkloadSpec(num_requests=20, seed=2).build().requests
    write_trace(tmp_path / "t.csv", full)
    requests = WorkloadSpec(trace=tmp_path / "t.csv", begin_at=0.75).build().requests
    lengths = [request.num_input_tokens for request in full]
    assert [r.num_input_tokens for r in requests] == lengths[15:] + lengths[:15]
    arrivals_s = [request.arrival_s for request in requests]
    assert arrivals_s == sorted(arrivals_s)
    assert arrivals_s[0] == 0.0


def test_a_sample_is_of_the_requests_in_use_and_no_others(tmp_path):
    """All of the first 16 where so many are asked for, beginning with the one asked for."""
    full = WorkloadSpec(num_requests=20, seed=2).build().requests
    write_trace(tmp_path / "t.csv", full)
    spec = WorkloadSpec(tmp_path / "t.csv", num_requests=16, sample_size=16, begin_at=0.5)
    lengths = [request.num_input_tokens for request in full]
    assert [r.num_input_tokens for r in spec.build().requests] == lengths[8:16] + lengths[:8]
    few = replace(spec, sample_size=4).build().requests
    assert len(few) == 4
    assert {r.num_input_tokens for r in few} <= set(lengths[:16])


def test_a_sample_of_more_than_there_are_takes_rounds_of_the_trace(tmp_path):
    """Each request comes once or twice, and the rate is the one asked for over all of them."""
    full = WorkloadSpec(num_requests=20, seed=2).build().requests
    write_trace(tmp_path / "t.csv", full)
    workload = WorkloadSpec(tmp_path / "t.csv", sample_size=30, rate_per_s=2.0).build()
    times = Counter(r.num_input_tokens for r in workload.requests)
    known = Counter(r.num_input_tokens for r in full)
    assert workload.rate_per_s == pytest.approx(2.0)
    assert sum(times.values()) == 30
    assert set(times) <= set(known)
    assert all(times[length] <= 2 * known[length] for length in known)
    twice = WorkloadSpec(tmp_path / "t.csv", sample_size=40, begin_at=0.25).build().requests
    lengths = [request.num_input_tokens for request in full]
    assert [r.num_input_tokens for r in twice] == 2 * (lengths[5:] + lengths[:5])


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_drawn_arrivals_have_the_rate_and_the_burstiness_asked_for(cv):
    """Gaps of a gamma process; the coefficient of variation of many gaps is near the one asked."""
    spec = WorkloadSpec(num_requests=4000, rate_per_s=2.0, arrival_cv=cv)
    workload = spec.build()
    gaps_s = np.diff([request.arrival_s for request in workload.requests])
    assert workload.rate_per_s == pytest.approx(2.0)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.15)
    assert f"CV {cv:g}" in spec.origin


def test_prompts_share_as_much_as_asked_for():
    """That share of every prompt is one of a few documents, and nothing else is shared."""
    spec = WorkloadSpec(num_requests=50, shared_prefix=0.64, num_prefixes=4)
    requests = spec.build().requests
    prompts = UniquePrompts(1)
    drawn = [(r, prompts.draw(r.num_input_tokens, r.prefix)) for r in requests]
    assert {len(prompt) - r.num_input_tokens for r, prompt in drawn} == {0}
    heads, rests = set(), set()
    for request, prompt in drawn:
        (block,) = request.prefix
        assert block.num_tokens == round(0.64 * request.num_input_tokens)
        heads.add(tuple(prompt[:5]))
        rests.add(prompt[block.num_tokens])
    assert len(heads) <= 4
    assert len(rests) == 50
    assert "64% of every prompt shared" in spec.origin
