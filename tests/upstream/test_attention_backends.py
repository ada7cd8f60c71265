"""What attention backends keep per forward pass, read from SGLang's source: many need a GPU."""

import ast
from pathlib import Path

import pytest
from sglang.srt.layers import attention

from sglang_flowprefill.adapter.model.forward_state import _REPLANNED, _SWAPPED_ATTRIBUTES

FOLDER = Path(next(iter(attention.__path__)))
PLAIN = {"forward_metadata"}
PLANNED = {
    "TorchNativeAttnBackend": ("torch_native_backend.py", {"swa_out_cache_loc"}),
    "FlashAttentionBackend": (
        "flashattention_backend.py",
        {"forward_metadata_spec_decode_expand"} | PLAIN,
    ),
    "FlashInferAttnBackend": ("flashinfer_backend.py", PLAIN),
    "TritonAttnBackend": ("triton_backend.py", {"_dense_one_shot_kv_indptr"} | PLAIN),
    "FlashInferMLAAttnBackend": ("flashinfer_mla_backend.py", PLAIN),
    "AiterAttnBackend": ("aiter_backend.py", PLAIN),
    "TRTLLMHAAttnBackend": ("trtllm_mha_backend.py", PLAIN),
    "TRTLLMMLABackend": (
        "trtllm_mla_backend.py",
        {"forward_prefill_metadata", "forward_decode_metadata"},
    ),
}
"""By backend: its file, and what planning assigns that layers read."""

NOT_OF_A_FORWARD = {
    "strided_indices",  # read by planning alone
    "_pa_swa_max_prefill_len",  # the largest so far
}


def planned_by(file, name):
    """Return the attributes that planning assigns in a class, and the bases of that class."""
    tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"))
    (found,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
    methods = [n for n in found.body if isinstance(n, ast.FunctionDef)]
    plans = [m for m in methods if m.name == "init_forward_metadata"]
    targets = [
        target
        for node in ast.walk(plans[0])
        if isinstance(node, ast.Assign)
        for whole in node.targets
        for target in (whole.elts if isinstance(whole, ast.Tuple) else [whole])
    ]
    attributes = {
        target.attr
        for target in targets
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
    }
    return attributes, {ast.unparse(base) for base in found.bases}


@pytest.mark.parametrize("name", PLANNED)
def test_what_planning_keeps_is_known(name):
    """A new attribute fails here until somebody has seen how it follows a suspended prefill."""
    file, known = PLANNED[name]
    found, _ = planned_by(file, name)
    assert found - NOT_OF_A_FORWARD == known


@pytest.mark.parametrize("name", PLANNED)
def test_every_known_backend_is_swapped_or_planned_again(name):
    """Swapped backends have all that planning assigns in their row."""
    file, known = PLANNED[name]
    _, bases = planned_by(file, name)
    if name in _SWAPPED_ATTRIBUTES:
        assert known <= set(_SWAPPED_ATTRIBUTES[name])
    else:
        assert {name, *bases} & _REPLANNED
