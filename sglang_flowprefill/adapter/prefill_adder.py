"""Admission that knows about suspended prefills.

SGLang's ``PrefillAdder`` reserves room for the future tokens of running requests only; a
suspended prefill's requests will decode as well.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from sglang.srt.managers.schedule_policy import PrefillAdder


class InflightView:
    """Requests that SGLang should count as running: the decoding and the suspended ones."""

    def __init__(self, reqs: Sequence[Any]) -> None:
        self.reqs = list(reqs)

    def batch_size(self) -> int:
        """Return the number of requests."""
        return len(self.reqs)


class FlowPrefillAdder(PrefillAdder):
    """``PrefillAdder`` that reserves KV for suspended requests too.

    For what they will generate, like for running ones, and for the chunks of their prompts that
    are still to come: a partly prefilled request can then always go on.
    """

    def __init__(
        self,
        page_size: int,
        tree_cache: Any,
        token_to_kv_pool_allocator: Any,
        running_batch: Any,
        *args: Any,
        suspended_reqs: Sequence[Any],
        **kwargs: Any,
    ) -> None:
        inflight = InflightView([*running_batch.reqs, *suspended_reqs])
        super().__init__(
            page_size, tree_cache, token_to_kv_pool_allocator, inflight, *args, **kwargs
        )

    def _get_running_request_total_token_offset(self, req: Any) -> float:
        generated = super()._get_running_request_total_token_offset(req)
        num_prompt_tokens = len(req.full_untruncated_fill_ids)
        return float(generated) + max(num_prompt_tokens - (req.extend_end or 0), 0)


def prefill_adder_with(suspended_reqs: Sequence[Any]) -> Any:
    """Return what SGLang calls in place of ``PrefillAdder``."""
    return partial(FlowPrefillAdder, suspended_reqs=suspended_reqs)
