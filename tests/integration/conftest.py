"""Servers shared by the integration tests. float32, since bfloat16 depends on batching."""

import pytest

from tests.integration.serving import serving

SLO_CLASSES = """\
classes:
  interactive: {ttft_slo_ms: 500}
  document: {ttft_slo_ms: 60000}
"""


@pytest.fixture(scope="session")
def slo_config(tmp_path_factory):
    """A class file."""
    path = tmp_path_factory.mktemp("slo") / "classes.yaml"
    path.write_text(SLO_CLASSES)
    return path


@pytest.fixture(scope="session")
def server(tmp_path_factory, slo_config):
    """FlowPrefill with its debug checks on."""
    folder = tmp_path_factory.mktemp("flowprefill")
    flags = ["--enable-metrics", "--flowprefill-check-cursors"]
    flags += ["--flowprefill-slo-config", str(slo_config)]
    with serving("flowprefill", folder, *flags) as running:
        yield running
