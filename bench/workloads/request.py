"""One request of a workload, before any prompt exists."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """When a request arrives, its class, and how long it is.

    Attributes:
        arrival_s: Seconds since the start of the workload; ascending within a workload.
        slo_class: Name of the class that its TTFT objective hangs on.
        num_input_tokens: Prompt length, at least 1.
        num_output_tokens: Tokens to generate, at least 1.
    """

    arrival_s: float
    slo_class: str
    num_input_tokens: int
    num_output_tokens: int
