"""SGLang's ``Req`` seen as the policy's ``PrefillRequest``, and SLOs on their way between them.

An SLO travels in ``sampling_params.custom_params``, which SGLang forwards untouched from every
route to the scheduler. The tokenizer process validates it and writes a stamp (``api/slo.py``); the
scheduler process reads nothing else.
"""

import time
from dataclasses import replace
from typing import Any

from sglang_flowprefill.api.slo import ARRIVAL_KEY, SloResolver
from sglang_flowprefill.core import PrefillDecider, PrefillRequest, Slo

_ATTRIBUTE = "flowprefill"
_JOINED = "flowprefill_joined_s"
_MAX_PLAUSIBLE_AGE_S = 24 * 3600.0


def attach_prefill_request(
    req: Any, resolver: SloResolver, now_s: float, wall_now_s: float
) -> None:
    """Give a new ``Req`` its ``PrefillRequest``.

    Args:
        req: SGLang's ``Req``, just made.
        resolver: Rules of the server. Requests that did not pass our tokenizer hook (warm-up,
            health checks) get its default.
        now_s: Scheduler clock.
        wall_now_s: ``time.time()`` at the same moment; arrivals are stamped in wall time, since
            monotonic clocks of two machines do not compare.
    """
    params = req.sampling_params.custom_params or {}
    slo = resolver.stamped_slo(params, len(req.origin_input_ids))
    age_s = wall_now_s - params.get(ARRIVAL_KEY, wall_now_s)
    if not 0.0 <= age_s <= _MAX_PLAUSIBLE_AGE_S:
        age_s = 0.0  # a wall clock stepped; arrival is now
    setattr(req, _ATTRIBUTE, _describe(req, now_s - age_s, slo))


def is_prefix_warmer(req: Any) -> bool:
    """Tell whether a ``Req`` only puts a prompt into the prefix cache for ``n`` samples of it."""
    params = req.sampling_params
    return params.n > 1 and params.max_new_tokens == 0


def has_prefill_request(req: Any) -> bool:
    """Tell whether a ``Req`` was given its ``PrefillRequest`` before."""
    return hasattr(req, _ATTRIBUTE)


def degrade_prefill_request(req: Any) -> None:
    """Have a ``Req`` served after all others."""
    setattr(req, _ATTRIBUTE, replace(prefill_request(req), is_degraded=True))


def restart_prefill_request(req: Any, now_s: float) -> None:
    """Renew the description of a ``Req`` that lost its KV and must be prefilled again.

    If its first token is out already, the objective counts from now, so that it is neither
    doomed nor first. Otherwise it is still due when it was.
    """
    before = prefill_request(req)
    arrival_s = now_s if len(req.output_ids) else before.arrival_s
    restarted = replace(_describe(req, arrival_s, before.slo), num_restarts=before.num_restarts + 1)
    setattr(req, _ATTRIBUTE, restarted)


def prefill_request(req: Any) -> PrefillRequest:
    """Return the policy's view of a ``Req``."""
    request: PrefillRequest = getattr(req, _ATTRIBUTE)
    return request


def update_cached_tokens(req: Any) -> None:
    """Take over the prefix length that SGLang matched for this ``Req``."""
    request = prefill_request(req)
    num_tokens = request.num_uncached_tokens + request.num_cached_tokens
    num_cached = min(int(req.prefix_len or 0), num_tokens - 1)
    if num_cached != request.num_cached_tokens:
        updated = replace(
            request, num_uncached_tokens=num_tokens - num_cached, num_cached_tokens=num_cached
        )
        setattr(req, _ATTRIBUTE, updated)


def grow_objective(req: Any, decider: PrefillDecider) -> None:
    """Let an objective that grows with the prompt grow, by the prediction of this moment."""
    request = prefill_request(req)
    if request.slo.predicted_factor:
        grown = request.slo.grown(decider.predict_s((request,)))
        setattr(req, _ATTRIBUTE, replace(request, slo=grown))


def note_joined(req: Any, now_s: float) -> None:
    """Note when a ``Req`` got its first token and began to decode."""
    setattr(req, _JOINED, now_s)


def joined_s(req: Any) -> float:
    """Return when a ``Req`` got its first token, in seconds; 0 if that is not known."""
    return float(getattr(req, _JOINED, 0.0))


def scheduler_clock_s() -> float:
    """Return the clock of all scheduling: monotonic, seconds."""
    return time.monotonic()


def _describe(req: Any, arrival_s: float, slo: Slo) -> PrefillRequest:
    num_tokens = len(req.origin_input_ids) + len(req.output_ids)
    return PrefillRequest(req.rid, arrival_s, slo, max(num_tokens, 1))
