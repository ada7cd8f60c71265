"""Runs prefills that belong to no request: warm-up, boundary count, start-up profile."""

import time
from array import array
from typing import TYPE_CHECKING

import numpy as np
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_flowprefill.adapter.requests import attach_prefill_request, scheduler_clock_s
from sglang_flowprefill.core import Slo

if TYPE_CHECKING:
    from sglang_flowprefill.adapter.model_runner import PreemptibleModelRunner
    from sglang_flowprefill.adapter.scheduler import FlowPrefillScheduler

_FIRST_PLAIN_TOKEN = 16  # below are the special tokens of most vocabularies


def measure_prefill_s(
    engine: "FlowPrefillScheduler",
    runner: "PreemptibleModelRunner",
    num_tokens: int,
    *,
    check_boundaries: bool = False,
) -> float:
    """Run one prefill of random tokens, leave no trace, and return its seconds.

    Args:
        engine: The scheduler, before it serves.
        runner: Makes the forward a cursor, so that boundaries cost what they will cost.
        num_tokens: Prompt length.
        check_boundaries: Count the boundaries that fire.

    Raises:
        UnsupportedSGLangError: Too few boundaries fire, with ``check_boundaries``.
        RuntimeError: There is no memory for the prompt.
    """
    req = _random_request(engine, num_tokens)
    batch = engine.form_prefill_batch([req])
    if batch is None:
        raise RuntimeError(f"no memory for a warm-up prefill of {num_tokens} tokens")
    cursor = runner.cursor(lambda: engine.run_forward(batch), is_preemptible=False)
    start_s = time.perf_counter()
    cursor.resume()
    duration_s = time.perf_counter() - start_s
    release_kv_cache(req, engine.tree_cache, checkpoint=False)
    if check_boundaries:
        runner.require_boundaries(cursor.num_boundaries, "fire in a forward pass")
    return duration_s


def _random_request(engine: "FlowPrefillScheduler", num_tokens: int) -> Req:
    vocab_size = engine.model_config.vocab_size
    tokens = np.random.default_rng(num_tokens).integers(_FIRST_PLAIN_TOKEN, vocab_size, num_tokens)
    sampling_params = SamplingParams(max_new_tokens=1, temperature=0.0)
    sampling_params.normalize(None)
    req = Req(
        rid=f"flowprefill-warm-up-{num_tokens}",
        origin_input_text="",
        origin_input_ids=array("q", tokens.tolist()),
        sampling_params=sampling_params,
        eos_token_ids=engine.model_config.hf_eos_token_id,
        vocab_size=vocab_size,
    )
    attach_prefill_request(req, Slo(1.0), scheduler_clock_s(), time.time())
    return req
