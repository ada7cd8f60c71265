"""The authors' TTFT objectives, scaled."""

import pytest

from bench.errors import UsageError
from bench.workloads.slo import ttft_slos_s, write_slo_classes
from sglang_flowprefill.api.class_file import ServerSlo, load_slo_classes


def test_objectives_scale_and_come_tightest_first():
    """Only the classes asked for, in order of urgency, times the factor."""
    slos_s = ttft_slos_s(["file", "text", "search", "image", "text"], scale=4)
    assert list(slos_s.items()) == [("text", 1.0), ("image", 2.0), ("search", 16.0), ("file", 24.0)]


def test_class_without_objective_needs_one():
    """A class of another trace is refused by name until its objective is given."""
    with pytest.raises(UsageError, match=r"'code'.*--slo CLASS=SECONDS"):
        ttft_slos_s(["text", "code"], scale=1)
    assert ttft_slos_s(["code"], scale=2, overrides={"code": 0.5}) == {"code": 1.0}


def test_server_reads_the_written_classes(tmp_path):
    """The file is one that ``--flowprefill-slo-config`` accepts, with the scaled objectives."""
    path = write_slo_classes(tmp_path / "slo-classes.yaml", {"text": 1.0, "file": 24.0})
    classes = load_slo_classes(str(path), ServerSlo(1000.0))
    assert classes.ttft_slo_ms == {"text": 1000.0, "file": 24000.0}
