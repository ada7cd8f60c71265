"""Our kernels under SGLang's own scheduler."""

import pytest

from tests.integration.serving import run_python, serving, tokens

NEVER_STALE = """
from types import SimpleNamespace
from sglang.srt.managers.io_struct import AbortReq, UpdateWeightFromDiskReqInput
from sglang_flowprefill.adapter.model import kernels_only

class Packed:
    num_layers, num_forgotten = 1, 0
    def __init__(self, model):
        model.packed = self
    def forget(self):
        self.num_forgotten += 1

kernels_only.PackedWeights = Packed
kernels_only.use_compiled_ops = lambda model: 1
kernels = kernels_only.KernelsOnly()
models = {device: SimpleNamespace() for device in ("cpu", "cuda")}
for device, model in models.items():
    kernels.on_model_ready(None, SimpleNamespace(device=device, model=model, attn_backend=None))
kernels.on_messages(None, None, [AbortReq(rid="a")])
print(models["cpu"].packed.num_forgotten)
kernels.on_messages(None, None, [AbortReq(rid="a"), UpdateWeightFromDiskReqInput(model_path="m")])
print(models["cpu"].packed.num_forgotten, hasattr(models["cuda"], "packed"))
"""


@pytest.mark.server
def test_packed_weights_are_dropped_when_weights_may_have_changed():
    """After a message that writes weights, and only then; a model on a GPU is left alone."""
    result = run_python(NEVER_STALE, SGLANG_USE_CPU_ENGINE="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["0", "1", "False"]


@pytest.mark.server
def test_stock_scheduler_serves_with_our_kernels(tmp_path):
    """It says that the kernels are in, answers as stock does, and knows none of our flags."""
    prompt = tokens(300, seed=7)
    answers = {}
    for system in ("stock", "stock-kernel"):
        with serving(system, tmp_path) as server:
            answers[system] = server.generate(prompt, 8)["output_ids"]
            log = server.log.read_text()
            assert ("with FlowPrefill's CPU kernels" in log) == (system == "stock-kernel")
    assert answers["stock-kernel"] == answers["stock"]
