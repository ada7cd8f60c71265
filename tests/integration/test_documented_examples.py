"""What the documentation tells a reader to do with a server, done with one."""

import pytest

from tests.documented import ROOT, blocks

pytestmark = pytest.mark.server

TUTORIAL = ROOT / "docs/tutorial/ten-minutes.md"


@pytest.mark.parametrize(
    "block", [b for b in blocks("server") if b.page not in (TUTORIAL, ROOT / "README.md")], ids=str
)
def test_examples_run_against_a_server(server, block):
    """No command of a page fails."""
    block.run(server.url)
    server.require_healthy()


def test_the_readmes_request_is_answered_with_paris(server):
    """A newcomer's first answer makes sense, and ends."""
    (first,) = [block for block in blocks("server") if block.page == ROOT / "README.md"]
    assert "Paris" in first.run(server.url)


def test_the_tutorial_shows_an_urgent_request_overtaking_a_long_one(server):
    """Step by step, as a newcomer would; the urgent answer comes first, by a preemption."""
    ask, overtake, look = [block for block in blocks("server") if block.page == TUTORIAL]
    assert '"choices"' in ask.run(server.url)
    before = server.statistics()["num_preemptions"]
    lines = overtake.run(server.url).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["urgent one", "long prompt"]
    assert server.statistics()["num_preemptions"] > before
    shown = look.run(server.url)
    assert "runs FlowPrefill" in " ".join(shown.replace("│", " ").split())
    assert "num_attained" in shown


def test_every_statistic_is_documented_and_the_reverse(server):
    """docs/reference/statistics.md lists the keys that ``GET /server_info`` shows."""
    page = (ROOT / "docs/reference/statistics.md").read_text(encoding="utf-8")
    documented = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(documented) == sorted(server.statistics())
