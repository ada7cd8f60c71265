"""The picture of the documentation is drawn from a timeline."""

from timelines import round_at, running, timeline_of

from bench.blocking.waits import Window
from bench.timeline_figure import draw_timeline


def test_picture_shows_a_suspension(tmp_path):
    """A long prefill that yields once and the short one in between are enough."""
    recorded = timeline_of(
        [
            running(4, 100.0, 0.02, 0.01, blocking_s=0.004),
            running(5, 100.04, 0.01, end="finished"),
            running(4, 100.06, 0.05, end="finished"),
        ],
        [round_at(100.0, "arrival"), round_at(100.03, "arrival"), round_at(100.05, "completion")],
    )
    draw_timeline(recorded, Window(99.0, 101.0), tmp_path / "new" / "timeline.png")
    assert (tmp_path / "new" / "timeline.png").read_bytes().startswith(b"\x89PNG")
