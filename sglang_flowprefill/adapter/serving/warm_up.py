"""Runs prefills that belong to no request: warm-up, boundary count, start-up profile."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.adapter.attributes import BATCH, REQUEST, require_attributes
from sglang_flowprefill.adapter.model.model_runner import PreemptibleModelRunner
from sglang_flowprefill.adapter.serving.engine import SGLangEngine
from sglang_flowprefill.adapter.serving.requests import attach_prefill_request, scheduler_clock_s
from sglang_flowprefill.executor import PrefillShape

_sglang = releases.scheduling()
_FIRST_PLAIN_TOKEN = 16  # below are the special tokens of most vocabularies


@dataclass(frozen=True, slots=True)
class _Forward:
    num_boundaries: int
    seconds: float


class WarmUp:
    """Prefills of random tokens, each of which leaves no trace.

    Args:
        scheduler: SGLang's scheduler, before it serves.
        engine: Its primitives.
        runner: Makes the forwards cursors, so that boundaries cost what they will cost.
    """

    def __init__(
        self, scheduler: Any, engine: SGLangEngine, runner: PreemptibleModelRunner
    ) -> None:
        self._scheduler = scheduler
        self._engine = engine
        self._runner = runner

    def check_boundaries(self, num_tokens: int) -> None:
        """Run one prefill and count the boundaries that fire.

        Raises:
            UnsupportedSGLangError: Too few do.
        """
        (only,) = self._prefill(PrefillShape(num_tokens))
        self._runner.require_boundaries(only.num_boundaries, "fire in a forward pass")

    def prefill_s(self, shape: PrefillShape) -> float:
        """Run one prefill and return its seconds, all of its chunks together.

        Tokens before a prefill are computed too, as a chunk of their own, and not counted.

        Raises:
            RuntimeError: There is no memory for it.
        """
        forwards = self._prefill(shape)
        return sum(forward.seconds for forward in forwards[1 if shape.num_cached_tokens else 0 :])

    def operator_seconds_per_row(self, num_tokens: int) -> dict[str, float]:
        """Run one prefill and return what its operators took per row, by family."""
        with self._runner.measuring_operators():
            self._prefill(PrefillShape(num_tokens))
        return self._runner.operator_seconds_per_row

    def _prefill(self, shape: PrefillShape) -> list[_Forward]:
        num_tokens = shape.num_cached_tokens + shape.num_uncached_tokens
        reqs = [_random_request(self._scheduler, num_tokens, i) for i in range(shape.num_requests)]
        with self._chunks_for(shape):
            forwards = self._run_to_end(reqs)
        for req in reqs:
            _sglang.release_uncached(req, self._scheduler.tree_cache)
        if len(forwards) > 1:  # earlier chunks are in the prefix cache
            self._scheduler.flush_cache(empty_cache=False)
        return forwards

    @contextmanager
    def _chunks_for(self, shape: PrefillShape) -> Iterator[None]:
        """Let a prefix be a chunk and a batch be whole, whatever the server's own chunks are."""
        usual = self._engine.max_chunk_tokens
        alone = shape.num_cached_tokens or usual
        self._engine.max_chunk_tokens = alone if shape.num_requests == 1 else None
        try:
            yield
        finally:
            self._engine.max_chunk_tokens = usual

    def _run_to_end(self, reqs: Sequence[Req]) -> list[_Forward]:
        engine, forwards = self._engine, []
        batch = engine.form_batch(reqs)
        if batch is not None:
            require_attributes(BATCH, batch)
            require_attributes(REQUEST, batch.reqs[0])
        while batch is not None and len(batch.reqs) == len(reqs):
            forwards.append(self._run(batch))
            if batch.chunked_req is None:
                return forwards
            (req,) = reqs
            req.inflight_middle_chunks -= 1  # as upstream does with the result of a chunk
            engine.publish_chunk(req)
            batch = engine.form_next_chunk(req)
        raise RuntimeError(f"no memory for a warm-up prefill of {[r.rid for r in reqs]}")

    def _run(self, batch: Any) -> _Forward:
        cursor = self._runner.cursor(partial(self._engine.run_forward, batch), is_preemptible=False)
        start_s = time.perf_counter()
        cursor.resume()
        self._runner.checkpoint.drain()
        return _Forward(cursor.num_boundaries, time.perf_counter() - start_s)


def _random_request(scheduler: Any, num_tokens: int, index: int) -> Req:
    vocab_size = scheduler.model_config.vocab_size
    rng = np.random.default_rng((num_tokens, index))
    tokens = rng.integers(_FIRST_PLAIN_TOKEN, vocab_size, num_tokens)
    sampling_params = SamplingParams(max_new_tokens=1, temperature=0.0)
    sampling_params.normalize(None)
    req = Req(
        rid=f"flowprefill-warm-up-{num_tokens}-{index}",
        origin_input_text="",
        origin_input_ids=_sglang.token_ids(tokens.tolist()),
        sampling_params=sampling_params,
        eos_token_ids=scheduler.model_config.hf_eos_token_id,
        vocab_size=vocab_size,
    )
    attach_prefill_request(req, scheduler.slo_resolver, scheduler_clock_s(), time.time())
    return req
