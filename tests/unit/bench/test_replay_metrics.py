"""Metrics count every request, failures as misses."""

import pytest
from rows import row

from bench.replaying.metrics import attainment, percentile, summarise, summarise_ttft


def test_attainment_counts_failures_as_misses():
    """Exactly on time is met; late, failed, and failed after the first token are not."""
    rows = [row(ttft_s=1.0), row(ttft_s=1.001), row(ttft_s=None), row(error="aborted")]
    assert attainment(rows) == 0.25


def test_percentiles_put_failures_last():
    """A failed request is slower than any other, so its percentile has no number."""
    rows = [row(ttft_s=s / 10) for s in range(1, 10)] + [row(ttft_s=None)]
    summary = summarise_ttft(rows)
    assert (summary.p50_s, summary.p90_s) == pytest.approx((0.5, 0.9))
    assert summary.p99_s is None
    assert summary.max_s is None
    assert summary.num_errors == 1


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1), (0.5, 50), (0.55, 55), (0.9, 90), (0.99, 99), (1.0, 100)]
)
def test_percentile_is_nearest_rank(fraction, expected):
    """Of 1..100, the q-th percentile is q: a value that occurred, not one between."""
    assert percentile(list(range(1, 101)), fraction) == expected


def test_summary_names_the_worst_class():
    """A class that collapses is named although the overall share looks well."""
    rows = [row(i, ttft_s=0.1) for i in range(9)]
    rows.append(row(9, slo_class="file", ttft_s=30.0, slo_ttft_s=6.0))
    summary = summarise(rows)
    assert summary.overall.attained == 0.9
    assert summary.worst_class == "file"
    assert list(summary.classes) == ["text", "file"]


def test_lateness_of_the_client_is_reported_and_chargeable():
    """TTFT from the scheduled send adds the lateness, so it can only attain less."""
    rows = [row(0, ttft_s=0.9), row(1, ttft_s=0.9, lateness_s=0.2)]
    summary = summarise(rows)
    assert summary.overall.attained == 1.0
    assert summary.attained_from_schedule == 0.5
    assert summary.lateness_max_s == pytest.approx(0.2)
