"""What the messages on the scheduler's sockets mean to us."""

from typing import Any

from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenizedGenerateReqInput,
    ConfigureLoggingReq,
    ContinueGenerationReqInput,
    FlushCacheReqInput,
    FreezeGCReq,
    GetInternalStateReq,
    PauseGenerationReqInput,
    TokenizedGenerateReqInput,
)

from sglang_flowprefill.core import EventKind

# These may run beside suspended prefills. Anything else (weights, LoRA, memory, profiling,
# shutdown, ...) finds none: they are run to their end first.
_HARMLESS_MESSAGES = (
    TokenizedGenerateReqInput,
    BatchTokenizedGenerateReqInput,
    AbortReq,
    FlushCacheReqInput,  # refuses by itself while the server is not idle
    GetInternalStateReq,
    FreezeGCReq,
    ConfigureLoggingReq,
    ContinueGenerationReqInput,
)


def kinds_of(message: Any) -> list[EventKind]:
    """Return the events that a message stands for: one per request that it brings."""
    if isinstance(message, BatchTokenizedGenerateReqInput):
        return [EventKind.ARRIVAL] * len(message)
    if isinstance(message, TokenizedGenerateReqInput):
        return [EventKind.ARRIVAL]
    return [EventKind.ABORT if isinstance(message, AbortReq) else EventKind.CONTROL]


def needs_quiet_engine(message: Any) -> bool:
    """Tell whether a message must find no suspended prefill."""
    if isinstance(message, PauseGenerationReqInput):
        return message.mode != "in_place"  # in place, suspended prefills just stay suspended
    return not isinstance(message, _HARMLESS_MESSAGES)
