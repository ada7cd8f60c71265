"""Cost models: shipped tables, fits, rooflines, shapes; each says where it comes from."""

import json

import pytest

from sglang_flowprefill.core.predictor import num_attention_pairs
from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.sim.costs import (
    FittedCost,
    RooflineCost,
    costs_for,
    fit_prefill_cost,
    read_profile_cost,
    shipped_table,
)
from sglang_flowprefill.sim.costs.table import read_table, shipped_names
from sglang_flowprefill.sim.device import kv_capacity_tokens, operator_shares
from sglang_flowprefill.sim.gpus import find_gpu
from sglang_flowprefill.sim.shapes import KNOWN_SHAPES, ModelShape, find_shape

LLAMA = KNOWN_SHAPES["llama-3.1-8b"]
MOE = KNOWN_SHAPES["qwen3-30b-a3b"]
A100 = find_gpu("a100")


def alone_s(cost, num_tokens, num_cached=0):
    """Return the seconds of one prompt."""
    return cost.prefill(num_tokens, num_attention_pairs(num_tokens, num_cached), 1).total_s


def test_a_table_gives_back_its_own_rows():
    """At every length without a prefix, and with a prefix within a tenth."""
    cost = shipped_table("a100", "llama-3.1-8b", 1)
    for num_tokens, num_cached, seconds in cost.samples:
        error = 1e-6 if not num_cached else 0.1
        if num_cached and num_tokens < 512:
            continue  # launches dominate, and a prefix is a small part
        assert alone_s(cost, num_tokens, num_cached) == pytest.approx(seconds, rel=error)


@pytest.mark.parametrize("name", shipped_names())
def test_longer_prompts_never_cost_less(name):
    """Of every shipped table, beyond its noise of kernel choice; and decode grows with context."""
    gpu, model, tp = name.split("/")
    cost = shipped_table(gpu, model, int(tp.removeprefix("tp")))
    times = [alone_s(cost, n) for n in (16, 128, 512, 2048, 8192, 32_768)]
    assert times == sorted(times)
    assert cost.decode_s(32, 32 * 4096) > cost.decode_s(32, 32 * 1024)
    assert "Apache-2.0" in cost.source


def test_the_fit_is_good_for_dense_models_and_wrong_for_short_prompts_of_experts():
    """Which is why tables are shipped and not lines."""
    dense, moe = shipped_table("a100", LLAMA.name, 1), shipped_table("a100", MOE.name, 1)
    fitted = FittedCost(fit_prefill_cost(dense.samples), "a fit")
    assert alone_s(fitted, 4096) == pytest.approx(alone_s(dense, 4096), rel=0.08)
    fitted = FittedCost(fit_prefill_cost(moe.samples), "a fit")
    assert alone_s(fitted, 16) > 1.9 * alone_s(moe, 16)


def test_a_roofline_is_of_the_order_of_the_tables_and_says_that_it_is_none():
    """Within a third at 8,192 tokens on every GPU with a table."""
    for name in ("a100", "h100", "h200", "b200"):
        roofline = RooflineCost(LLAMA, find_gpu(name))
        table = costs_for(LLAMA, find_gpu(name), 1)
        assert alone_s(roofline, 8192) == pytest.approx(alone_s(table, 8192), rel=0.34)
    assert "assumed" in costs_for(LLAMA, find_gpu("l40s"), 1).source


def test_an_a800_pays_for_its_links_only_with_several_gpus():
    """Its tables are an A100's."""
    a800 = find_gpu("a800")
    assert alone_s(costs_for(LLAMA, a800, 1), 1000) == alone_s(costs_for(LLAMA, A100, 1), 1000)
    large = KNOWN_SHAPES["llama-3.1-70b"]
    assert alone_s(costs_for(large, a800, 4), 1000) > alone_s(costs_for(large, A100, 4), 1000)


def test_the_longest_operator_depends_on_the_model():
    """Gate-up of a dense model is half of a layer, the experts of a mixture still more."""
    dense = {o.name: o.share for o in operator_shares(LLAMA, A100, 1)}
    assert dense["gate-up"] == pytest.approx(0.54, abs=0.02)
    assert max(operator_shares(MOE, A100, 1), key=lambda o: o.share).name == "experts"
    assert sum(o.share for o in operator_shares(LLAMA, A100, 1)) == pytest.approx(1.0)


def test_shapes_count_the_parameters_of_their_models():
    """As published: 8.03, 14.77, 70.55 and 30.53 billion."""
    billions = [shape.num_parameters / 1e9 for shape in KNOWN_SHAPES.values()]
    assert billions == pytest.approx([8.03, 14.77, 70.55, 30.53], rel=1e-3)


def test_a_folder_with_a_config_is_a_model(tmp_path):
    """And one without is told so in a line."""
    config = {
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "vocab_size": 151_936,
    }
    with pytest.raises(PlanError, match=r"config\.json"):
        ModelShape.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_shape(str(tmp_path)).products == MOE.products
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    with pytest.raises(PlanError, match="hidden_size"):
        ModelShape.from_folder(tmp_path)


def test_a_model_that_does_not_fit_is_refused():
    """Weights alone are larger than the GPU."""
    with pytest.raises(PlanError, match="does not fit"):
        kv_capacity_tokens(KNOWN_SHAPES["llama-3.1-70b"], A100, 1, 0.88)
    # The authors' log of an 8B model at 80 %: 369,008 tokens.
    assert kv_capacity_tokens(LLAMA, A100, 1, 0.8) == pytest.approx(369_008, rel=0.1)


def test_a_servers_profile_is_a_cost_model(tmp_path):
    """As the server keeps it; anything else gets one line."""
    path = tmp_path / "profile.json"
    samples = [
        {
            "shape": {"num_uncached_tokens": n, "num_cached_tokens": 0, "num_requests": 1},
            "duration_s": n / 1000,
        }
        for n in (16, 64, 256, 1024)
    ]
    path.write_text(json.dumps({"key": {"device": "cpu", "machine": "x86"}, "samples": samples}))
    assert alone_s(read_profile_cost(path), 512) == pytest.approx(0.512, rel=0.01)
    path.write_text("{}")
    with pytest.raises(PlanError, match="not a server's profile"):
        read_profile_cost(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefill": [[16, 0, "fast"]]}, "not a table of costs"),
        ({"prefill": [[16, 0, 5], [32, 0, 6]]}, "three lengths"),
        ({"prefill": [[16, 0, 5], [32, 0, 6], [64, 0, 0]]}, "above 0"),
        ({"decode": [[1, 1024, 5]]}, "two sizes of batch"),
    ],
)
def test_a_table_of_ones_own_is_read_or_refused_in_a_line(changes, message, tmp_path):
    """Its source is stated with every answer."""
    table = {
        "source": "my own stopwatch",
        "prefill": [[16, 0, 5.0], [512, 0, 20.0], [4096, 0, 160.0]],
        "decode": [[1, 1024, 5.0], [32, 1024, 8.0]],
    }
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    assert read_table(path).source == "my own stopwatch"
    assert alone_s(read_table(path), 512) == pytest.approx(0.02)
    path.write_text(json.dumps(table | changes))
    with pytest.raises(PlanError, match=message):
        read_table(path)
