"""The picture of one burst shows the prefill that made way for others."""

import pytest

from bench.errors import UsageError
from bench.goodput_report.burst import burst_of, class_of, draw_burst
from sglang_flowprefill.observe.timeline import Timeline
from sglang_flowprefill.observe.timeline_reader import read_timeline


def write_timeline(path, num_short):
    """Write the trace of a long prefill, suspended for so many short ones, and one after it."""
    times = iter(range(1000))
    timeline = Timeline(path, lambda: 0.0)

    def finish_short(batch):
        timeline.on_resume(batch, f"r{batch} (text)", next(times), reason="urgent")
        timeline.on_finish(batch, next(times), outcome="finished")

    timeline.on_resume(0, "r0 (file)", next(times), reason="first")
    for batch in range(1, num_short + 1):
        timeline.on_yield(0, next(times), causes=["message"], blocking_s=0.001)
        finish_short(batch)
        timeline.on_resume(0, "r0 (file)", next(times), reason="goes on")
    timeline.on_finish(0, next(times), outcome="finished")
    finish_short(num_short + 1)
    timeline.close()


def test_a_burst_is_the_life_of_the_most_suspended_prefill(tmp_path):
    """What ran before or after it is left out."""
    write_timeline(tmp_path / "trace.json", 3)
    slices = burst_of(read_timeline(tmp_path / "trace.json"))
    assert [s.batch_id for s in slices] == [0, 1, 0, 2, 0, 3, 0]
    assert [class_of(s) for s in slices[:2]] == ["file", "text"]


def test_the_picture_counts_suspensions(tmp_path):
    """It says how often the first prefill made way."""
    write_timeline(tmp_path / "trace.json", 3)
    picture = draw_burst(tmp_path / "trace.json", tmp_path)
    assert "suspended 3 times" in picture.caption
    assert (tmp_path / "burst.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["no trace", "[\n]\n"])
def test_a_timeline_without_a_burst_is_refused(tmp_path, text):
    """Neither another file nor one in which nothing was suspended makes a picture."""
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"trace\.json"):
        draw_burst(path, tmp_path)
