"""Tiles on SGLang's FlashInfer backend, and the signatures of FlashInfer that they rely on."""

import ast
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType
from sglang_flowprefill.kernels.flashinfer import prefill_tiles

from sglang_flowprefill.adapter.model.flashinfer import tile_flashinfer
from tests.unit.kernels.flashinfer_double import RECORDED, TorchWrapper

HEADS, KV_HEADS, DIM, NUM_TOKENS, NUM_CACHED = 4, 2, 16, 50, 7


def test_recorded_signatures_are_those_of_the_installed_flashinfer():
    """Read from its source, which needs neither CUDA nor an import."""
    spec = importlib.util.find_spec("flashinfer")
    if spec is None:
        pytest.skip("flashinfer-python is not installed")
    (folder,) = spec.submodule_search_locations
    tree = ast.parse((Path(folder) / "prefill.py").read_text(encoding="utf-8"))
    (wrapper,) = (
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "BatchPrefillWithPagedKVCacheWrapper"
    )
    found = {
        node.name: ", ".join(argument.arg for argument in node.args.args)
        for node in wrapper.body
        if isinstance(node, ast.FunctionDef) and node.name in RECORDED
    }
    assert found == RECORDED


class FlashInferAttnBackend:
    """What the tiles read of SGLang's backend of this name, and its two methods."""

    def __init__(self, **changes):
        self.dispatch_reason = self._swa_kv_pool = self.prefill_split_tile_size = None
        self.enable_mis = self.is_dllm_model = self.skip_prefill = False
        self.prefill_uses_dequant_workspace = False
        self.kv_index_translator = SimpleNamespace(reads_are_translated=False)
        self.workspace_buffer, self.prefill_backend = torch.empty(1), "fa2"
        self.prefill_wrappers_paged = [TorchWrapper(self.workspace_buffer)]
        self.indices_updater_prefill = SimpleNamespace(
            num_qo_heads=HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=DIM,
            q_data_type=torch.float32,
            data_type=torch.float32,
            sliding_window_size=None,
        )
        table = torch.randperm(200).int().view(2, 100)
        self.req_to_token_pool = SimpleNamespace(req_to_token=table)
        self.token_to_kv_pool = Pool(table)
        self.calls = []
        for name, value in changes.items():
            setattr(self, name, value)

    def init_forward_metadata(self, _forward_batch):
        """Note that SGLang planned."""
        self.calls.append("plan")

    def forward_extend(self, q, *_args, **_kwargs):
        """Note that SGLang attended."""
        self.calls.append("extend")
        return q

    def _kv_write_scales(self, _layer):
        return (None, None)


class Pool:
    """Keys and values of one layer."""

    def __init__(self, table):
        self.buffers = tuple(torch.randn(2, table.numel(), KV_HEADS, DIM))

    def get_kv_buffer(self, _layer_id):
        """Return keys and values."""
        return self.buffers

    def set_kv_buffer(self, _layer, location, k, v, *_scales):
        """Write new tokens."""
        for buffer, new in zip(self.buffers, (k, v), strict=True):
            buffer[location.loc.long()] = new.view(-1, KV_HEADS, DIM)


def layer(**changes):
    """Return a causal layer."""
    settings = {
        "attn_type": AttentionType.DECODER,
        "is_cross_attention": False,
        "logit_cap": 0.0,
        "qk_head_dim": DIM,
        "v_head_dim": DIM,
        "head_dim": DIM,
        "sliding_window_size": -1,
        "tp_q_head_num": HEADS,
        "layer_id": 0,
        "scaling": 0.3,
        "k_scale_float": None,
        "v_scale_float": None,
    }
    return SimpleNamespace(**(settings | changes))


def prefill(backend):
    """Return a batch of one prompt after a cached prefix, and its query, keys and values."""
    locations = backend.req_to_token_pool.req_to_token[1, NUM_CACHED : NUM_CACHED + NUM_TOKENS]
    batch = SimpleNamespace(
        forward_mode=SimpleNamespace(is_extend=lambda: True),
        spec_info=None,
        extend_seq_lens_cpu=[NUM_TOKENS],
        extend_prefix_lens_cpu=[NUM_CACHED],
        req_pool_indices=torch.tensor([1]),
        out_cache_loc=locations,
        out_cache_loc_is_physical=False,
    )
    generator = torch.Generator().manual_seed(3)
    widths = (HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM)
    return batch, [torch.randn(NUM_TOKENS, width, generator=generator) for width in widths]


@pytest.fixture
def backend(monkeypatch):
    """A backend whose tiles are short."""
    monkeypatch.setattr(prefill_tiles, "ROWS_MULTIPLE", 16)
    return FlashInferAttnBackend()


def test_attention_in_tiles_writes_the_cache_and_attends_to_it(backend):
    """New tokens and cached prefix, a boundary between tiles; SGLang plans, and does not attend."""
    tiled, reached = tile_flashinfer(backend), []
    tiled.reach = lambda: reached.append(1)
    batch, (q, k, v) = prefill(backend)
    tiled.limit_tiles(400.0)
    backend.init_forward_metadata(batch)
    result = backend.forward_extend(q, k, v, layer(), batch)
    slots = backend.req_to_token_pool.req_to_token[1, : NUM_CACHED + NUM_TOKENS].long()
    keys, values = (t[slots] for t in backend.token_to_kv_pool.buffers)
    assert torch.equal(keys[NUM_CACHED:].view(NUM_TOKENS, -1), k)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.view(-1, HEADS, DIM).movedim(0, 1),
        keys.movedim(0, 1),
        values.movedim(0, 1),
        attn_mask=torch.arange(len(slots)) <= torch.arange(NUM_CACHED, len(slots))[:, None],
        scale=0.3,
        enable_gqa=True,
    )
    torch.testing.assert_close(result, expected.movedim(0, 1).reshape(NUM_TOKENS, -1))
    assert backend.calls == ["plan"]
    assert reached


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_cap": 30.0},
        {"attn_type": AttentionType.ENCODER_ONLY},
        {"is_cross_attention": True},
        {"v_head_dim": 8},
        {"sliding_window_size": 5},
    ],
)
def test_layers_that_tiles_do_not_know_run_sglangs_code(backend, changes):
    """Capped scores, other masks and other windows."""
    tiled = tile_flashinfer(backend)
    batch, (q, k, v) = prefill(backend)
    tiled.limit_tiles(400.0)
    backend.init_forward_metadata(batch)
    backend.forward_extend(q, k, v, layer(**changes), batch)
    assert backend.calls == ["plan", "extend"]


def test_decode_and_short_prefills_run_sglangs_code(backend):
    """The plan of the prefill before them is gone."""
    tiled = tile_flashinfer(backend)
    batch, (q, k, v) = prefill(backend)
    tiled.limit_tiles(400.0)
    backend.init_forward_metadata(batch)
    backend.init_forward_metadata(
        SimpleNamespace(forward_mode=SimpleNamespace(is_extend=lambda: False))
    )
    backend.forward_extend(q, k, v, layer(), batch)
    tiled.limit_tiles(math.inf)
    backend.init_forward_metadata(batch)
    backend.forward_extend(q, k, v, layer(), batch)
    assert backend.calls == ["plan", "plan", "extend", "plan", "extend"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dispatch_reason": SimpleNamespace(name="CROSS_ATTENTION")}, "cross attention"),
        ({"_swa_kv_pool": object()}, "KV pool of their own"),
        ({"enable_mis": True}, "multi-item"),
        ({"prefill_uses_dequant_workspace": True}, "quantised"),
    ],
)
def test_a_backend_that_tiles_do_not_fit_is_left_alone_and_why_is_said(caplog, changes, message):
    """Nothing is replaced; the log names the reason and what it means."""
    backend = FlashInferAttnBackend(**changes)
    assert tile_flashinfer(backend) is None
    assert message in caplog.text
    assert "init_forward_metadata" not in vars(backend)


def test_other_backends_are_none_of_its_business(caplog):
    """No tiles, and nothing to say."""
    assert tile_flashinfer(SimpleNamespace()) is None
    assert not caplog.text
