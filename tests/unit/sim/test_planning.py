"""The planner: systems by their own rules, clusters, routers, rates, sizes, calibration."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from sglang_flowprefill.core import PrefillDecider, Slo
from sglang_flowprefill.core.predictor import num_attention_pairs
from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.sim.cluster import Failure
from sglang_flowprefill.sim.deployment import SYSTEMS, find_system
from sglang_flowprefill.sim.instances import DecodeInstance
from sglang_flowprefill.sim.records import DecodeWork
from sglang_flowprefill.sim.routers import ROUTERS
from sglang_flowprefill.sim.study.calibration import MeasuredRow, calibrate, corrected
from sglang_flowprefill.sim.study.goodput import RunLength, max_rate, min_instances
from sglang_flowprefill.sim.study.paired import compare
from sglang_flowprefill.sim.study.serving import attempt, serve
from sglang_flowprefill.sim.workload import TracedRequest, Workload
from tests.unit.sim.planned import COST, SLOS, WORKER, deployment, workload

SHORT = RunLength(200, 1.0)


def lone(num_tokens, num_output_tokens=1, class_name="document"):
    """Return a workload of one prompt, and one so late that it meets nobody."""
    requests = [
        TracedRequest(0.0, class_name, num_tokens, num_output_tokens),
        TracedRequest(1000.0, class_name, num_tokens, num_output_tokens),
    ]
    return Workload(requests, SLOS, "one prompt", first_tokens_only=num_output_tokens == 1)


def run_of(system, load, rate_per_s, num_requests, **changes):
    """Run a system without giving up."""
    return attempt(deployment(system, **changes), load, rate_per_s, num_requests)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_lone_prompt_takes_its_own_time_in_every_system(system):
    """In one pass what the cost model says; in several, one more base for each."""
    run = run_of(system, lone(2000), 1e-3, 2)
    alone_s = COST.prefill(2000, num_attention_pairs(2000), 1).total_s
    assert alone_s * 0.999 <= run.rows[0].ttft_s <= alone_s * 1.001 + 4 * COST.cost.base_s


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_request_ends_and_no_machine_works_for_nothing(system):
    """All rows are there, and a device is busy for no less than the products take."""
    load = workload()
    run = run_of(system, load, 4.0, 200)
    assert [row.index for row in run.rows] == list(range(200))
    assert all(math.isfinite(row.finished_s) for row in run.rows)
    span_s = max(row.finished_s for row in run.rows)
    tokens_s = sum(row.num_input_tokens for row in run.rows) * COST.cost.per_token_s
    assert run.busy_share * span_s >= tokens_s * 0.999


def test_preemption_serves_chats_that_whole_prompts_make_wait():
    """The promise of the project, and the baseline that has no chunks."""
    ours, whole = (run_of(s, workload(), 3.0, 200) for s in ("flowprefill", "distserve"))
    assert ours.classes["chat"].attained > whole.classes["chat"].attained + 0.2
    gained = compare(whole, ours)[-1]
    assert gained.class_name == "all"
    assert gained.num_gained - gained.num_lost == round(200 * (ours.attained - whole.attained))


def test_finer_boundaries_block_for_less_time():
    """Operators less than half layers, those less than layers."""
    blocking = [
        sum(run.blocking_s) / len(run.blocking_s)
        for granularity in ("operator", "half-layer", "layer")
        for run in [
            run_of(
                "flowprefill",
                workload(),
                3.0,
                200,
                settings={"granularity": granularity, "run_ahead": 1},
            )
        ]
    ]
    assert blocking == sorted(blocking)
    assert blocking[0] < blocking[2] / 2


def test_operators_in_flight_are_waited_for():
    """Three of them block longer than one."""
    one, three = (
        run_of("flowprefill", workload(), 3.0, 200, settings={"run_ahead": k}) for k in (1, 3)
    )
    assert sum(three.blocking_s) / len(three.blocking_s) > sum(one.blocking_s) / len(one.blocking_s)


def test_chunked_engines_fill_their_steps_and_sglang_has_one_unfinished_prompt():
    """A chat behind a document gets its token with the document's first chunk, or after all."""
    requests = [
        TracedRequest(0.0, "document", 12_000, 1),
        TracedRequest(0.01, "chat", 300, 1),
        TracedRequest(100.0, "chat", 300, 1),
    ]
    load = Workload(requests, SLOS, "a chat behind a document")
    ttft_s = {
        system: run_of(system, load, load.rate_per_s, 3).rows[1].ttft_s
        for system in ("vllm-cp2k", "cp2k-s-edf", "sglang", "distserve")
    }
    document_s = COST.prefill(12_000, num_attention_pairs(12_000), 1).total_s
    assert ttft_s["cp2k-s-edf"] < document_s / 3
    for system in ("vllm-cp2k", "sglang", "distserve"):
        assert ttft_s[system] > document_s * 0.9


def test_equal_seeds_give_equal_rows_and_other_seeds_other_arrivals():
    """At the same mean rate."""
    load = workload()
    first, again = (run_of("flowprefill", load, 3.0, 200) for _ in range(2))
    assert first == again
    drawn = load.arrivals(3.0, 200, seed=1)
    assert drawn == load.arrivals(3.0, 200, seed=1)
    times_s = [a.request.arrival_s for a in drawn]
    assert times_s != [a.request.arrival_s for a in load.arrivals(3.0, 200)]
    assert times_s[-1] == pytest.approx(199 / 3.0)


@pytest.mark.parametrize("router", ROUTERS)
def test_two_instances_sustain_what_one_does_not(router):
    """Behind every router."""
    one = run_of("flowprefill", workload(), 5.0, 200)
    two = run_of("flowprefill", workload(), 5.0, 200, num_instances=2, router=router)
    assert two.attained > one.attained
    assert {row.instance for row in two.rows} == {0, 1}


def test_a_router_that_looks_at_load_avoids_the_instance_with_the_document():
    """Round robin sends every other chat behind it."""
    requests = [TracedRequest(0.0, "document", 30_000, 1)]
    requests += [TracedRequest(0.05 + 0.1 * i, "chat", 300, 1) for i in range(5)]
    load = Workload(requests, SLOS, "one document")
    run = run_of("fcfs", load, load.rate_per_s, 6, num_instances=2, router="least-load")
    assert {row.instance for row in run.rows if row.slo_class == "chat"} == {1}


def test_prefix_affinity_sends_a_prefix_where_it_is_cached():
    """Its tokens are computed once, and the policy sees the rest only."""
    prefix = ((7, 10_000),)
    requests = [TracedRequest(4.0 * i, "document", 11_000, 1, prefix) for i in range(6)]
    load = Workload(requests, SLOS, "one document, six questions")
    run = run_of("flowprefill", load, load.rate_per_s, 6, num_instances=3, router="prefix-affinity")
    assert len({row.instance for row in run.rows}) == 1
    assert run.rows[0].ttft_s > 3 * run.rows[1].ttft_s
    spread = run_of("flowprefill", load, load.rate_per_s, 6, num_instances=3)
    assert len({row.instance for row in spread.rows}) == 3


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_computes_a_shared_prefix_once(system):
    """A baseline without its prefix cache would be no opponent."""
    prefix = ((7, 10_000),)
    requests = [TracedRequest(10.0 * i, "document", 11_000, 1, prefix) for i in range(3)]
    load = Workload(requests, SLOS, "one document, three questions")
    first, second, third = run_of(system, load, load.rate_per_s, 3).rows
    assert first.ttft_s > 3 * second.ttft_s
    assert second.ttft_s == pytest.approx(third.ttft_s)


def test_more_memory_is_never_worse():
    """A few slots more, many more, no bound: the share in time does not fall."""
    load = workload(first_tokens_only=False)
    shares = []
    for num_kv_tokens in (14_000, 30_000, 100_000, None):
        worker = replace(WORKER, num_kv_tokens=num_kv_tokens)
        run = attempt(replace(deployment(), worker=worker), load, 2.5, 100)
        shares.append(run.attained)
    assert all(after >= before - 0.01 for before, after in pairwise(shares))


def test_the_policy_of_the_plan_is_the_policy_of_the_server(monkeypatch):
    """Imported, not written again: every decision of a run is one of ``core``."""
    decided = []
    decide = PrefillDecider.decide

    def counted(self, view, now_s):
        decided.append(view)
        return decide(self, view, now_s)

    monkeypatch.setattr(PrefillDecider, "decide", counted)
    run_of("flowprefill", workload(), 3.0, 50)
    assert len(decided) >= 50


def test_requests_of_an_instance_that_fails_start_over_elsewhere_with_their_old_deadline():
    """None is lost; their waiting counts from their arrival."""
    load = workload()
    whole = run_of("flowprefill", load, 5.0, 200, num_instances=2)
    failed = run_of("flowprefill", load, 5.0, 200, num_instances=2, failure=Failure(15.0, 1))
    assert len(failed.rows) == 200
    assert all(row.instance == 0 for row in failed.rows if row.scheduled_s >= 15.0)
    assert failed.attained < whole.attained


def test_faster_machines_sustain_more_and_the_search_finds_the_edge():
    """Costs a tenth lower; the found rate passes and the failed one is close above."""
    load = workload()
    found = max_rate(deployment(), load, goal=0.9, length=SHORT)
    assert found.run.attained >= 0.9
    assert found.rate_per_s < found.failed_per_s <= found.rate_per_s * 1.021
    assert attempt(deployment(), load, found.failed_per_s, 200, goal=0.9) is None
    faster = replace(deployment(), worker=WORKER.scaled(0.9))
    assert max_rate(faster, load, goal=0.9, length=SHORT).rate_per_s > found.rate_per_s


def test_the_least_number_of_instances_is_the_least():
    """One fewer misses the goal."""
    load = workload()
    size = min_instances(deployment(), load, 30.0, goal=0.95, length=SHORT, max_per_instance=3.0)
    assert size.attained >= 0.95
    fewer = deployment(num_instances=size.num_instances - 1)
    num_requests = SHORT.num_requests(30.0, size.num_instances - 1)
    assert attempt(fewer, load, 30.0, num_requests, goal=0.95) is None


def test_decode_steps_grow_with_their_context_and_leaps_lose_no_token():
    """The closed form agrees with adding step by step."""
    instance = DecodeInstance(COST)
    instance.add(DecodeWork("a", 0.0, 1000, 50, 1051))
    instance.add(DecodeWork("b", 0.05, 3000, 20, 3021))
    ends_s = {d.work.request_id: d.last_token_s for d in instance.finish()}
    now_s, context, left = 0.0, 1001, {"a": 50}
    has_joined = False
    expected = {}
    while left:
        now_s += COST.decode_s(len(left), context)
        context += len(left)
        for name in list(left):
            left[name] -= 1
            if not left[name]:
                expected[name] = now_s
                context -= {"a": 1051, "b": 3021}[name]
                del left[name]
        if not has_joined and now_s >= 0.05:
            has_joined, context = True, context + 3001
            left["b"] = 20
    assert ends_s == pytest.approx(expected)


def test_decode_on_servers_of_its_own_leaves_first_tokens_alone():
    """The same first tokens as without decode; colocated they come later."""
    load = workload(first_tokens_only=False)
    only = run_of("flowprefill", workload(), 2.0, 60)
    split = run_of("flowprefill", load, 2.0, 60, num_decode_instances=1)
    together = run_of("flowprefill", load, 2.0, 60)
    assert [r.ttft_s for r in split.rows] == [r.ttft_s for r in only.rows]
    assert sum(r.ttft_s for r in together.rows) > sum(r.ttft_s for r in split.rows)
    assert all(r.finished_s > r.first_token_s for r in split.rows)


def test_the_policy_sees_what_clients_ask_for_and_not_what_they_will_get():
    """Memory for 4,000 new tokens is reserved although 40 will come."""
    load = replace(workload(first_tokens_only=False), max_new_tokens=4000)
    small = replace(deployment(), worker=replace(WORKER, num_kv_tokens=16_100))
    tight = attempt(small, load, 2.0, 60)
    roomy = attempt(small, replace(load, max_new_tokens=None), 2.0, 60)
    assert tight.attained < roomy.attained


def test_calibration_finds_a_factor_that_was_put_in():
    """Rows of a machine that is a fifth slower; errors after are smaller than before."""
    load = workload()
    slow = corrected(deployment(), 1.2, 0.003)
    run = serve(slow, load.arrivals(3.0, 150), 3.0)
    rows = [
        MeasuredRow(r.slo_class, r.scheduled_s, r.num_input_tokens, 1, r.slo_ttft_s, r.ttft_s)
        for r in run.rows
    ]
    found = calibrate(deployment(), rows)
    assert found.factor == pytest.approx(1.2, rel=0.1)
    before, after = (max(map(abs, c["all"].relative)) for c in (found.before, found.after))
    assert after < min(before / 2, 0.1)
    with pytest.raises(PlanError, match="at least 20"):
        calibrate(deployment(), rows[:3])


def test_an_objective_that_grows_with_the_prompt_grows_by_the_predicted_prefill():
    """As in the server; the row states what it has grown to."""
    load = replace(lone(2000), slos={"document": Slo(0.5, "document", predicted_factor=2.0)})
    row = run_of("flowprefill", load, 1e-3, 2).rows[0]
    assert row.slo_ttft_s == pytest.approx(0.5 + 2 * row.ttft_s, rel=0.05)


def test_a_workload_that_cannot_be_judged_is_refused():
    """A class without an objective, all at once, a single request."""
    one = TracedRequest(0.0, "chat", 10, 1)
    with pytest.raises(PlanError, match="two requests"):
        Workload([one], SLOS, "one")
    with pytest.raises(PlanError, match="all requests arrive at once"):
        Workload([one, one], SLOS, "two at once")
    with pytest.raises(PlanError, match="no objective for class 'chat'"):
        Workload([one, replace(one, arrival_s=1.0)], {"text": Slo(1.0, "text")}, "no class")
    with pytest.raises(PlanError, match="choose one of"):
        find_system("orca")
