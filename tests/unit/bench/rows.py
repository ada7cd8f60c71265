"""Builder of replay rows for tests that need no server."""

from bench.replaying.row import RequestRow


def row(
    index=0, slo_class="text", ttft_s=0.1, slo_ttft_s=1.0, *, lateness_s=0.0, error=None
) -> RequestRow:
    """Make a row with this TTFT; ``ttft_s=None`` is a request that never had a token."""
    sent_s = index + lateness_s
    first_token_s = None if ttft_s is None else sent_s + ttft_s
    return RequestRow(
        index=index,
        slo_class=slo_class,
        num_input_tokens=8,
        num_output_tokens=1,
        slo_ttft_s=slo_ttft_s,
        scheduled_s=float(index),
        sent_s=sent_s,
        first_token_s=first_token_s,
        finished_s=sent_s + 1.0,
        num_generated_tokens=0 if ttft_s is None else 1,
        error=error or ("timeout" if ttft_s is None else None),
    )
