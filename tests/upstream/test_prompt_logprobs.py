"""Prompt log-probabilities in tiles: the same numbers, and a boundary before each tile."""

import inspect
from types import SimpleNamespace

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.logprob_processor import InputLogprobProcessor
from torch import nn

from sglang_flowprefill.adapter.model.prompt_logprobs import tile_prompt_logprobs

VOCABULARY, WIDTH, NUM_ROWS = 50_000, 8, 300


class Model(nn.Module):
    """A model of which only the logits processor is real, without SGLang's runtime around it."""

    def __init__(self):
        super().__init__()
        self.logits_processor = LogitsProcessor.__new__(LogitsProcessor)
        nn.Module.__init__(self.logits_processor)
        self.logits_processor.input_logprob_processor = InputLogprobProcessor(VOCABULARY)
        self.num_products = 0

    def get_logits(self, states, lm_head, _metadata, **_options):
        """Multiply with the LM head."""
        self.num_products += 1
        return states @ lm_head


def logprobs_of(model, states, lm_head):
    """Ask SGLang's processor for the log-probabilities of one prompt of these rows."""
    metadata = SimpleNamespace(
        extend_return_logprob=True,
        extend_return_top_logprob=False,
        extend_token_ids_logprob=False,
        sample_indices_cpu=[NUM_ROWS - 1],
        input_logprob_indices_cpu=list(range(NUM_ROWS)),
        temp_scaled_logprobs=False,
        top_p_normalized_logprobs=False,
        extend_logprob_pruned_lens_cpu=[NUM_ROWS],
        extend_input_logprob_token_ids_gpu=torch.arange(NUM_ROWS),
        top_logprobs_nums=[0],
        token_ids_logprobs=[None],
        temperature=None,
        top_p=None,
    )
    result, sampled = model.logits_processor.input_logprob_processor.forward(
        pruned_states=states,
        sample_indices=torch.tensor([NUM_ROWS - 1]),
        input_logprob_indices=torch.arange(NUM_ROWS),
        token_to_seq_idx=[0] * NUM_ROWS,
        lm_head=lm_head,
        get_logits_fn=model.logits_processor._get_logits,
        logits_metadata=metadata,
    )
    return result.token_logprobs, sampled


def test_tiles_give_the_numbers_of_the_whole_with_a_boundary_before_each():
    """300 rows in tiles of 83: four products, four boundaries, equal log-probabilities."""
    torch.manual_seed(0)
    states, lm_head = torch.randn(NUM_ROWS, WIDTH), torch.randn(WIDTH, VOCABULARY)
    whole, tiled, reached = Model(), Model(), []
    for model in (whole, tiled):
        model.logits_processor._get_logits = model.get_logits
    assert tile_prompt_logprobs(tiled, "cpu", reached.append) == 1
    expected, expected_logits = logprobs_of(whole, states, lm_head)
    found, found_logits = logprobs_of(tiled, states, lm_head)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_logits, expected_logits)
    assert (whole.num_products, tiled.num_products) == (1, 4)
    assert reached == ["logits tile"] * 4


def test_sglang_takes_the_product_from_the_module_at_every_forward():
    """What is put on the module is what the processor is given."""
    source = inspect.getsource(LogitsProcessor.forward)
    assert "get_logits_fn=self._get_logits" in source
    assert "self._get_logits(" in source
