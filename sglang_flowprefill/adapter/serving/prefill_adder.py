"""Memory for new prefills beside suspended ones.

SGLang's ``PrefillAdder`` reserves room for the future tokens of running requests only; a
suspended prefill's requests will decode as well.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from sglang.srt.managers.schedule_policy import AddReqResult

from sglang_flowprefill.adapter import releases


class InflightView:
    """Requests that SGLang should count as running: the decoding and the suspended ones."""

    def __init__(self, reqs: Sequence[Any]) -> None:
        self.reqs = list(reqs)

    def batch_size(self) -> int:
        """Return the number of requests."""
        return len(self.reqs)


class MemoryClaims:
    """What suspended requests will need of the memory, and what was lacking for a new one.

    Attributes:
        suspended_reqs: Requests whose prefill is suspended, without the one to be continued.
        num_missing_tokens: KV slots that the request which was turned away lacks.
    """

    def __init__(self, suspended_reqs: Sequence[Any]) -> None:
        self.suspended_reqs = suspended_reqs
        self.num_missing_tokens = 1  # turned away for something else: a request row


class FlowPrefillAdder(releases.scheduling().PrefillAdder):
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
        claims: MemoryClaims,
        **kwargs: Any,
    ) -> None:
        inflight = InflightView([*running_batch.reqs, *claims.suspended_reqs])
        super().__init__(
            page_size, tree_cache, token_to_kv_pool_allocator, inflight, *args, **kwargs
        )
        self._claims = claims

    def add_one_req(self, req: Any, *args: Any, **kwargs: Any) -> Any:
        """Note what a request lacks that is turned away."""
        result = super().add_one_req(req, *args, **kwargs)
        if result == AddReqResult.NO_TOKEN and req not in self.can_run_list:
            num_generated = req.sampling_params.max_new_tokens - len(req.output_ids)
            self._note_missing(req, max(num_generated, 0))
        return result

    def add_chunked_req(self, req: Any) -> Any:
        """Note what a partly prefilled request lacks that cannot go on."""
        rest = super().add_chunked_req(req)
        if req not in self.can_run_list:
            self._note_missing(req, 0)
        return rest

    def _note_missing(self, req: Any, num_generated: int) -> None:
        num_needed = len(req.full_untruncated_fill_ids) - req.prefix_len + num_generated
        num_missing = num_needed + self.page_size - int(self.rem_total_tokens)
        self._claims.num_missing_tokens = max(num_missing, 1)

    def _get_running_request_total_token_offset(self, req: Any) -> float:
        generated = super()._get_running_request_total_token_offset(req)
        num_prompt_tokens = len(req.full_untruncated_fill_ids)
        return float(generated) + max(num_prompt_tokens - (req.extend_end or 0), 0)


def prefill_adder_with(claims: MemoryClaims) -> Any:
    """Return what SGLang calls in place of ``PrefillAdder``."""
    return partial(FlowPrefillAdder, claims=claims)
