"""What logs and traces say of a decision: one choice of facts for both."""

from typing import Any

from sglang_flowprefill.core import Degrade, PrefillBatch, PrefillRequest, Reject


def preemption_facts(
    preempted: PrefillBatch, by: PrefillBatch, now_s: float, reason: str
) -> dict[str, Any]:
    """Say who made way for whom, and why."""
    return {
        **_facts_of(preempted),
        "run_ms": _ms(preempted.run_s),
        "remaining_ms": _ms(preempted.remaining_s),
        "slack_ms": _ms(preempted.requests[0].deadline_s - now_s),
        "num_preemptions": preempted.num_preemptions,
        **{f"by_{name}": value for name, value in _facts_of(by).items()},
        "reason": reason,
    }


def resumption_facts(prefill: PrefillBatch, now_s: float, reason: str) -> dict[str, Any]:
    """Say who goes on after how long, and why. The prefill stands suspended still."""
    return {
        **_facts_of(prefill),
        "run_ms": _ms(prefill.run_s),
        "remaining_ms": _ms(prefill.remaining_s),
        "slack_ms": _ms(prefill.requests[0].deadline_s - now_s),
        "suspended_ms": _ms(now_s - prefill.changed_s),
        "reason": reason,
    }


def drop_facts(prefill: PrefillBatch, reason: str) -> dict[str, Any]:
    """Say whose computation was thrown away, and why."""
    return {**_facts_of(prefill), "lost_ms": _ms(prefill.run_s), "reason": reason}


def verdict_facts(request: PrefillRequest, verdict: Degrade | Reject) -> dict[str, Any]:
    """Say who was not admitted as any other, and why."""
    facts: dict[str, Any] = {
        "request_id": request.request_id,
        "slo_class": request.slo.class_name,
        "num_tokens": request.num_uncached_tokens,
        "ttft_slo_ms": _ms(request.slo.ttft_s),
        "reason": verdict.reason,
    }
    if isinstance(verdict, Reject) and verdict.retry_after_s < float("inf"):
        facts["retry_after_ms"] = _ms(verdict.retry_after_s)
    return facts


def _facts_of(prefill: PrefillBatch) -> dict[str, Any]:
    return {
        "batch_id": prefill.batch_id,
        "request_ids": [request.request_id for request in prefill.requests],
        "slo_class": prefill.requests[0].slo.class_name,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000.0, 3)
