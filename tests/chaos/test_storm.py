"""The chaos suite's short form: a storm, and everything back at its level.

``make chaos`` runs the long one: 20,000 requests over three seeds.
"""

import os

import pytest

from tests.chaos.storm import level_of, prompts, quiet_answers, storm
from tests.integration.serving import serving

pytestmark = pytest.mark.server

NUM_REQUESTS = int(os.environ.get("CHAOS_REQUESTS", "300"))
SEEDS = range(int(os.environ.get("CHAOS_SEEDS", "1")))
NUM_WARM_UP = 100
MAX_GROWTH = 0.05  # of resident memory, and descriptors of connections that are closing
SLO_CLASSES = "classes: {interactive: {ttft_slo_ms: 500}, document: {ttft_slo_ms: 60000}}"
KV_TOKENS = "6000"  # three of the longest prompts: memory runs out while prefills are suspended


@pytest.fixture(scope="module")
def small_server(tmp_path_factory):
    """A server with little KV memory, many chunks and every check that there is."""
    folder = tmp_path_factory.mktemp("chaos")
    slo_config = folder / "classes.yaml"
    slo_config.write_text(SLO_CLASSES)
    flags = ["--max-total-tokens", KV_TOKENS, "--flowprefill-max-chunk-tokens", "512"]
    flags += ["--flowprefill-check-cursors", "--flowprefill-slo-config", str(slo_config)]
    with serving("flowprefill", folder, *flags) as server:
        yield server


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_loses_doubles_leaks_and_falsifies_nothing(small_server, seed, record_property):
    """60 % of the requests are aborted or left at random moments, KV runs out, clients read slowly.

    Afterwards memory, descriptors and threads are where they were, the cache can be emptied, and
    SGLang's strict leak checks, which end the server, have found nothing.
    """
    server = small_server
    answers = quiet_answers(server, prompts())
    storm(server, NUM_WARM_UP, 1000 + seed, answers)
    before, counted = level_of(server), server.statistics()
    report = storm(server, NUM_REQUESTS, seed, answers)
    after, now = level_of(server), server.statistics()
    names = ("num_preemptions", "num_cancelled", "num_dropped", "num_failed")
    figures = {name: now[name] - counted[name] for name in names}
    print(f"\nseed {seed}: {dict(report.outcomes)}, {figures}, {before} -> {after}")
    record_property("outcomes", dict(report.outcomes))
    assert report.is_clean, report
    assert sum(report.outcomes.values()) == NUM_REQUESTS
    assert figures["num_failed"] == 0
    assert figures["num_cancelled"] > 0, "some should be aborted while they stand suspended"
    assert after.memory_bytes < (1 + MAX_GROWTH) * before.memory_bytes
    assert after.num_files <= before.num_files + 5
    assert after.num_threads <= before.num_threads + 2
    server.require_healthy()
