"""Measured prefill costs on disk: used again, and never trusted blindly."""

import json

import pytest

from sglang_flowprefill.adapter.serving.profile import PrefillLimits, prefill_profile
from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.executor import ProfileSample, Ranks

KEY = {"model": "tiny", "dtype": "float32"}
TRUE = PrefillCost(0.02, 1e-3, 1e-7, per_request_s=0.003)


class Machine:
    """Takes exactly what its cost says, and counts how often it is asked."""

    def __init__(self):
        self.shapes = []

    def prefill_s(self, shape):
        """Return the seconds of one prefill."""
        self.shapes.append(shape)
        return ProfileSample(shape, 1.0).predicted_s(TRUE)

    def operator_seconds_per_row(self, num_tokens):
        """Return those of two families."""
        return {"mlp": 1e-5, "norm": num_tokens * 1e-9}


def profile(folder, machine, *, again=False, key=KEY, max_tokens=8192, max_requests=64):
    """Fetch or measure the profile of a machine, alone."""
    return prefill_profile(
        key,
        PrefillLimits(max_tokens, max_requests),
        machine,
        str(folder),
        Ranks(0, 1, None),
        measures_again=again,
    )


def test_the_second_start_measures_nothing(tmp_path):
    """The same machine and model: what was measured is what is used."""
    first = profile(tmp_path, Machine())
    machine = Machine()
    assert profile(tmp_path, machine) == first
    assert machine.shapes == []
    assert first.cost.per_request_s == pytest.approx(TRUE.per_request_s)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x00\xff not json"),
        lambda path: path.write_text('{"format_version": 3}'),
        lambda path: path.write_text(path.read_text()[:-20]),
        lambda path: _change(path, lambda stored: stored.update(format_version=2)),
        lambda path: _change(path, lambda stored: stored["key"].update(model="another")),
        lambda path: _change(path, lambda stored: stored["samples"][0].update(duration_s=-1.0)),
        lambda path: _change(path, lambda stored: stored.update(samples=stored["samples"][:2])),
        lambda path: _change(path, lambda stored: stored.update(unknown=1)),
    ],
)
def test_a_damaged_or_foreign_file_is_measured_again_and_replaced(tmp_path, damage):
    """A start-up never fails, and never predicts, by a file that cannot be right."""
    first = profile(tmp_path, Machine())
    damage(first.path)
    machine = Machine()
    assert profile(tmp_path, machine) == first
    assert machine.shapes
    machine = Machine()
    profile(tmp_path, machine)
    assert machine.shapes == [], "the file was not replaced"


def test_a_folder_that_cannot_be_written_costs_only_the_next_start(tmp_path):
    """Without a cache the server starts all the same."""
    (tmp_path / "file").write_text("in the way")
    machine = Machine()
    assert profile(tmp_path / "file", machine).cost.base_s == pytest.approx(TRUE.base_s)
    assert machine.shapes


def test_asked_to_measure_again_it_does_and_replaces_the_file(tmp_path):
    """For a profile that was made while the machine was busy."""
    profile(tmp_path, Machine())
    machine = Machine()
    profile(tmp_path, machine, again=True)
    assert machine.shapes


def test_only_what_fits_into_the_engine_is_measured(tmp_path):
    """Neither more tokens than the cache holds nor more sequences than may run."""
    machine = Machine()
    profile(tmp_path, machine, max_tokens=600, max_requests=4)
    sizes = {s.num_requests * (s.num_uncached_tokens + s.num_cached_tokens) for s in machine.shapes}
    assert max(sizes) <= 600
    assert {s.num_requests for s in machine.shapes} == {1, 4}


def _change(path, change):
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))
