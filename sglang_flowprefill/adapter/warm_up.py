"""Runs prefills that belong to no request: warm-up, boundary count, start-up profile."""

import time
from array import array
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_flowprefill.adapter.requests import attach_prefill_request, scheduler_clock_s

if TYPE_CHECKING:
    from sglang_flowprefill.adapter.model_runner import PreemptibleModelRunner
    from sglang_flowprefill.adapter.scheduler import FlowPrefillScheduler

_FIRST_PLAIN_TOKEN = 16  # below are the special tokens of most vocabularies


class WarmUp:
    """Prefills of random tokens, each of which leaves no trace.

    Args:
        engine: The scheduler, before it serves.
        runner: Makes the forwards cursors, so that boundaries cost what they will cost.
    """

    def __init__(self, engine: "FlowPrefillScheduler", runner: "PreemptibleModelRunner") -> None:
        self._engine = engine
        self._runner = runner

    def check_boundaries(self, num_tokens: int) -> None:
        """Run one prefill and count the boundaries that fire.

        Raises:
            UnsupportedSGLangError: Too few do.
        """
        num_boundaries, _ = self._prefill(num_tokens)
        self._runner.require_boundaries(num_boundaries, "fire in a forward pass")

    def prefill_s(self, num_tokens: int) -> float:
        """Run one prefill and return its seconds, all of its chunks together.

        Raises:
            RuntimeError: There is no memory for the prompt.
        """
        return self._prefill(num_tokens)[1]

    def operator_seconds_per_row(self, num_tokens: int) -> dict[str, float]:
        """Run one prefill and return what its operators took per row, by family."""
        with self._runner.measuring_operators():
            self._prefill(num_tokens)
        return self._runner.operator_seconds_per_row

    def _prefill(self, num_tokens: int) -> tuple[int, float]:
        """Return the boundaries passed and the seconds taken."""
        engine = self._engine
        req = _random_request(engine, num_tokens)
        batch = engine.form_prefill_batch([req])
        num_boundaries, seconds = 0, 0.0
        while batch is not None:
            run = partial(engine.run_forward, batch)
            cursor = self._runner.cursor(run, is_preemptible=False)
            start_s = time.perf_counter()
            cursor.resume()
            self._runner.checkpoint.drain()
            seconds += time.perf_counter() - start_s
            num_boundaries += cursor.num_boundaries
            if batch.chunked_req is None:
                self._forget(req)
                return num_boundaries, seconds
            req.inflight_middle_chunks -= 1  # as upstream does with the result of a chunk
            engine.publish_chunk(req)
            batch = engine.form_next_chunk(req)
        raise RuntimeError(f"no memory for a warm-up prefill of {num_tokens} tokens")

    def _forget(self, req: Req) -> None:
        """Free what the prompt holds, and what its earlier chunks left in the prefix cache."""
        release_kv_cache(req, self._engine.tree_cache, checkpoint=False)
        if req.prefix_len:
            self._engine.flush_cache(empty_cache=False)


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
    attach_prefill_request(req, engine.slo_resolver, scheduler_clock_s(), time.time())
    return req
