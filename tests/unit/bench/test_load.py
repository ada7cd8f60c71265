"""What a load sweep says of attainment and goodput."""

import pytest
from rich.console import Console
from rows import row

from bench.load.command import print_load
from bench.load.figure import draw_load
from bench.load.points import LoadPoint, levels_of, peak_goodput_per_s


def point(load, num_text_met, num_file_met, seed=0):
    """Return a replay of ten text and ten file requests, of which so many were in time."""
    rows = [row(i, "text", 0.5 if i < num_text_met else 2.0) for i in range(10)]
    rows += [row(10 + i, "file", 5.0 if i < num_file_met else None, 8.0) for i in range(10)]
    return LoadPoint(load, load * 4.0, seed, rows)


POINTS = [
    *(point(1.3, n, 10, seed) for seed, n in enumerate((2, 4, 9))),
    *(point(0.9, 10, n, seed) for seed, n in enumerate((10, 9, 10))),
]


def test_loads_are_in_order_with_all_their_seeds():
    """The lightest comes first, whatever was measured first."""
    levels = levels_of(POINTS)
    assert [(level.load, len(level.points)) for level in levels] == [(0.9, 3), (1.3, 3)]


def test_a_level_is_the_median_of_its_seeds_and_shows_their_range():
    """One lucky or unlucky seed does not make the result."""
    light, heavy = levels_of(POINTS)
    assert heavy.attained == pytest.approx(0.7)
    assert heavy.attained_range == pytest.approx((0.6, 0.95))
    assert heavy.class_attained == pytest.approx({"text": 0.4, "file": 1.0})
    assert light.class_attained == pytest.approx({"text": 1.0, "file": 1.0})


def test_goodput_counts_what_was_offered_and_met():
    """Requests per second that met their objective; failed ones met none."""
    light, heavy = levels_of(POINTS)
    assert light.goodput_per_s == pytest.approx(3.6 * 1.0)
    assert heavy.goodput_per_s == pytest.approx(5.2 * 0.7)
    assert peak_goodput_per_s([light, heavy]) == heavy.goodput_per_s


def test_the_table_names_the_worst_class_of_every_load():
    """An overall share can hide a class that collapsed."""
    console = Console(width=140, record=True)
    print_load("title", POINTS, console)
    text = console.export_text()
    assert "load 130%: worst class text 40.0%" in text
    assert "60.0% - 95.0%" in text


def test_the_picture_is_a_png(tmp_path):
    """Attainment and goodput in one file, its folder made if needed."""
    draw_load("title", levels_of(POINTS), tmp_path / "pictures" / "load.png")
    assert (tmp_path / "pictures" / "load.png").read_bytes().startswith(b"\x89PNG")
