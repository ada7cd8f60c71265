"""What ``python -m sglang_flowprefill profile`` shows, from samples on disk."""

import msgspec
import pytest
from rich.console import Console

from sglang_flowprefill.__main__ import main
from sglang_flowprefill.adapter.serving.profile import StoredProfile, read_samples
from sglang_flowprefill.commands.profile import profile_table
from sglang_flowprefill.commands.profile_figure import draw_profile
from sglang_flowprefill.core import PrefillCost
from sglang_flowprefill.errors import ProfileError
from sglang_flowprefill.executor import PrefillShape, ProfileSample

TRUE = PrefillCost(0.02, 1e-3, 1e-7, per_request_s=0.003)
SHAPES = [*map(PrefillShape, (16, 64, 256, 1024)), PrefillShape(64, 1024), PrefillShape(16, 0, 8)]


@pytest.fixture
def samples():
    """Exact measurements, but for one that took 10 % longer."""
    exact = [ProfileSample(s, ProfileSample(s, 1.0).predicted_s(TRUE)) for s in SHAPES]
    return [*exact, ProfileSample(PrefillShape(512), 1.1 * (0.023 + 0.512 + 512 * 513 / 2 * 1e-7))]


def test_the_table_shows_what_was_measured_and_how_far_the_fit_is_off(samples):
    """A row per prefill; the one that took longer is the one that the fit is short of."""
    console = Console(width=120, record=True)
    console.print(profile_table(samples))
    text = console.export_text()
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert list(rows) == [*map(str, SHAPES), "512 tokens"]
    off = float(rows["512 tokens"].split("│")[4].strip().rstrip("%"))
    assert -9.5 < off < -1.0
    assert "throughput saturates at 256 tokens" in " ".join(text.split())


def test_the_picture_is_a_png(samples, tmp_path):
    """Fit and residuals in one file; where it cannot be written, the error names the place."""
    draw_profile(samples, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ProfileError, match=r"missing/profile\.png"):
        draw_profile(samples, tmp_path / "missing" / "profile.png")


def test_a_stored_profile_is_read_back(samples, tmp_path):
    """The command reads what the scheduler process has measured."""
    path = tmp_path / "profile.json"
    path.write_bytes(msgspec.json.encode(StoredProfile(3, {}, samples, {"norm": 1e-6})))
    assert read_samples(path) == samples


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"format_version": 3}'])
def test_an_unreadable_profile_is_named(tmp_path, content):
    """A file that is missing or broken is an error that says which."""
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"profile\.json"):
        read_samples(path)


def test_no_command_is_a_usage_error(capsys):
    """Without a command the usage is shown, which names the commands."""
    with pytest.raises(SystemExit):
        main([])
    assert "COMMAND" in capsys.readouterr().err
