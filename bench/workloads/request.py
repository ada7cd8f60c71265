"""One request of a workload, before any prompt exists."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefixBlock:
    """Tokens at the head of a prompt that other prompts may share.

    Attributes:
        block_id: Blocks with the same identity have the same tokens.
        num_tokens: Its length.
    """

    block_id: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """When a request arrives, its class, and how long it is.

    Attributes:
        arrival_s: Seconds since the start of the workload; ascending within a workload.
        slo_class: Name of the class that its TTFT objective hangs on.
        num_input_tokens: Prompt length, at least 1.
        num_output_tokens: Tokens to generate, at least 1.
        prefix: Blocks at the head of the prompt, at most as long as the prompt together.
    """

    arrival_s: float
    slo_class: str
    num_input_tokens: int
    num_output_tokens: int
    prefix: tuple[PrefixBlock, ...] = ()
