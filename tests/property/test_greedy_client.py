"""A client that claims more than anybody could give it takes nothing from the honest ones."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_flowprefill.core import DecodePacing, PrefillDecider, SEdf
from sglang_flowprefill.core.batching import BatchLimits
from sglang_flowprefill.sim import Arrival, MachineModel, simulate
from sglang_flowprefill.testing import MS_PER_TOKEN, make_request

DECIDER = PrefillDecider(SEdf(), MS_PER_TOKEN, BatchLimits(512))
MACHINE = MachineModel(MS_PER_TOKEN, max_tile_s=0.01, decode_step_s=0.02)
LONGEST_OPERATOR_S = 3.0 * 0.42 / 28
HONEST_SLO_S = 0.5


def honest(num_requests, period_s):
    """Short prompts with an objective that an idle machine meets four times over."""
    return [
        Arrival(
            make_request(
                f"honest {n}",
                arrival_s=n * period_s,
                ttft_slo_s=HONEST_SLO_S,
                class_name="honest",
                num_uncached_tokens=100,
            ),
            num_output_tokens=2,
        )
        for n in range(num_requests)
    ]


@settings(max_examples=60, deadline=None)
@given(
    claims_ms=st.lists(st.sampled_from([1.0, 1.0, 5.0, 50.0]), min_size=1, max_size=25),
    num_tokens=st.integers(500, 3000),
    period_s=st.sampled_from([0.2, 0.4]),
    gap_s=st.sampled_from([0.0, 0.5, 1.5]),
)
def test_honest_requests_keep_their_attainment(claims_ms, num_tokens, period_s, gap_s):
    """However many long prompts claim a millisecond.

    They are late, and behind those who can make it, until they have waited for thirty times their
    own work.
    """
    greedy = [
        Arrival(
            make_request(
                f"greedy {n}",
                arrival_s=n * gap_s,
                ttft_slo_s=claim / 1000.0,
                class_name="greedy",
                num_uncached_tokens=num_tokens,
            )
        )
        for n, claim in enumerate(claims_ms)
    ]
    polite = honest(60, period_s)
    result = simulate([*polite, *greedy], DECIDER, MACHINE)
    late = [
        outcome.request.request_id
        for outcome in result.outcomes
        if outcome.request.slo.class_name == "honest" and outcome.ttft_s > HONEST_SLO_S
    ]
    assert late == []
    assert len(result.outcomes) == len(polite) + len(greedy)


def test_a_claim_of_one_millisecond_a_token_takes_no_more_than_half_of_the_machine():
    """While somebody else's prompt is prefilled; the server's own objective may take more."""
    document = Arrival(make_request("document", ttft_slo_s=100.0, num_uncached_tokens=4000))
    stream = make_request("stream", ttft_slo_s=10.0, num_uncached_tokens=10)

    def ttft_s(tpot_s):
        claim = make_request("stream", ttft_slo_s=10.0, num_uncached_tokens=10).slo
        claim = type(claim)(claim.ttft_s, claim.class_name, tpot_s)
        wants = Arrival(type(stream)("stream", 0.0, claim, 10), num_output_tokens=10_000)
        result = simulate(
            [document, wants], DECIDER, MACHINE, tpot_slo_s=0.2, pacing=DecodePacing()
        )
        return result.outcomes[0].ttft_s

    assert ttft_s(0.001) <= 2.1 * 4.0
    assert ttft_s(0.001) > 1.5 * 4.0
