"""A whole prefill on a real GPU, suspended at every boundary: the same bits come out."""

import math

import pytest
import torch

from bench.gpu.cuts import Cut
from bench.gpu.fused import FUSED_OPS
from bench.gpu.llama import RowOps, Shape, causal_attention, random_llama
from bench.gpu.victim import Costs, Victim

pytestmark = pytest.mark.gpu

SHAPE = Shape(
    num_layers=3,
    hidden=1024,
    num_heads=8,
    num_kv_heads=2,
    head_dim=128,
    intermediate=4096,
    vocabulary=5000,
)
NUM_TOKENS = 3001
# Rows and pairs that cost so much are cut at a thousand rows and half a million pairs.
COSTS = Costs(
    {
        "layers.*.mlp": 1e-6,
        "layers.*.qkv_proj": 1e-6,
        "layers.*.o_proj": 1e-6,
        "layers.*.mlp.gate_up_proj": 1e-6,
        "layers.*.mlp.down_proj": 1e-6,
        "layers.*.input_layernorm": 1e-6,
        "layers.*.post_attention_layernorm": 1e-6,
    },
    seconds_per_pair=2e-9,
)
CUTS = [
    Cut("operator, k=1", run_ahead=1),
    Cut("operator, k=3"),
    Cut("operator, no bound", run_ahead=None),
    Cut("tiles", max_operator_ms=1.0),
    Cut("doorbell", max_operator_ms=1.0, has_doorbell=True),
]
MIN_BOUNDARIES = SHAPE.num_layers * 7 + 1


@pytest.fixture(scope="module", params=["torch", "triton"])
def model(request):
    """Return a small Llama, with torch's row-wise functions and with our kernels."""
    torch.manual_seed(11)
    ops = RowOps() if request.param == "torch" else FUSED_OPS
    return random_llama(SHAPE, torch.device("cuda"), torch.bfloat16, ops)


def tokens(num_tokens):
    """Return a prompt."""
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randint(SHAPE.vocabulary, (num_tokens,), generator=generator).cuda()


@torch.inference_mode()
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.name)
def test_suspended_at_every_boundary_with_others_in_between_the_logits_are_the_same(model, cut):
    """Two prefills take turns, and a third runs through after every slice."""
    victim, other = Victim(model, tokens(NUM_TOKENS)), Victim(model, tokens(777))
    other_alone = other.run_uncut().clone()
    with victim.cut(cut, COSTS) as begin:
        alone = begin()
        assert alone.resume()
        victim.due_s = -math.inf
        cursors = [begin(), begin()]
        while not all(cursor.is_finished for cursor in cursors):
            for cursor in cursors:
                if not cursor.is_finished:
                    cursor.resume()
                    assert torch.equal(other.run_uncut(), other_alone)
        for cursor in cursors:
            assert torch.equal(cursor.result, alone.result)
            assert cursor.num_suspensions == cursor.num_boundaries >= MIN_BOUNDARIES


@torch.inference_mode()
@pytest.mark.parametrize("cut", CUTS[3:], ids=lambda cut: cut.name)
def test_cut_and_uncut_agree_within_rounding(model, cut):
    """Another division of rows, another kernel: the library may sum in another order."""
    victim = Victim(model, tokens(NUM_TOKENS))
    uncut = victim.run_uncut().float()
    with victim.cut(cut, COSTS) as begin:
        cursor = begin()
        assert cursor.resume()
    assert (cursor.result.float() - uncut).norm() / uncut.norm() < 2e-2


@torch.inference_mode()
@pytest.mark.parametrize("start", [0, 1, 1000, 1999])
def test_a_query_tile_attends_to_all_positions_before(start):
    """The flash kernel's mask lies at the last key, also for grouped heads and odd lengths."""
    torch.manual_seed(3)
    queries = torch.randn(2000, 8, 128, device="cuda", dtype=torch.bfloat16)
    keys, values = torch.randn(2, 2000, 2, 128, device="cuda", dtype=torch.bfloat16)
    expected = causal_attention(*(x.float() for x in (queries, keys, values)))[start:]
    result = causal_attention(queries[start:], keys, values)
    assert (result.float() - expected).norm() / expected.norm() < 1e-2
