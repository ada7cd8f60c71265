"""A workload is prepared in one order, and its name keeps the trace's caveat."""

import pytest

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
