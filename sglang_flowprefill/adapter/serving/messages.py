"""What the messages on the scheduler's sockets mean to us.

A message may be acted on beside suspended prefills, or it must find none. ``BESIDE_SUSPENDED`` and
``NEEDS_QUIET`` name every message that SGLang 0.5.23 dispatches, by the name of its class and with
the reason; ``tests/upstream/test_messages.py`` compares them with SGLang's own dispatcher. One
that neither knows finds no prefill in flight.
"""

from types import MappingProxyType
from typing import Any

from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenizedGenerateReqInput,
    PauseGenerationReqInput,
    TokenizedGenerateReqInput,
)

from sglang_flowprefill.core import EventKind

_NEW_REQUEST = "it only joins the waiting queue"
_READS = "it only reads"
_REFUSES = "SGLang refuses it by itself while the server is not idle"
_BESIDE_MODEL = "it touches neither weights nor KV"

BESIDE_SUSPENDED = MappingProxyType(
    {
        "TokenizedGenerateReqInput": _NEW_REQUEST,
        "TokenizedEmbeddingReqInput": _NEW_REQUEST,
        "BatchTokenizedGenerateReqInput": _NEW_REQUEST,
        "BatchTokenizedEmbeddingReqInput": _NEW_REQUEST,
        "AbortReq": "it marks requests; the loop gives their memory back",
        "OpenSessionReqInput": "a session is a record of past turns",
        "CloseSessionReqInput": "it marks its requests as aborted; the loop does the rest",
        "GetWeightsByNameReqInput": _READS,
        "GetInternalStateReq": _READS,
        "GetHiCacheL3LayoutReq": _READS,
        "ListExternalCorporaReqInput": _READS,
        "FlushCacheReqInput": _REFUSES,
        "AttachHiCacheStorageReqInput": _REFUSES,
        "DetachHiCacheStorageReqInput": _REFUSES,
        "ProfileReq": "torch's profiler may start and stop between two operators",
        "FreezeGCReq": _BESIDE_MODEL,
        "ConfigureLoggingReq": _BESIDE_MODEL,
        "UpdateWeightVersionReqInput": "it renames the weights that are loaded",
        "SlowDownReqInput": _BESIDE_MODEL,
        "SetInternalStateReq": "it sets numbers that are read when a batch is formed",
        "ContinueGenerationReqInput": "it ends a pause",
    }
)
"""Messages that may be acted on while prefills stand suspended, and why."""

_WRITES = "it may write weights"
_MEMORY = "it takes memory away, or gives other memory"
_RANKS = "it changes which ranks take part"

NEEDS_QUIET = MappingProxyType(
    {
        "UpdateWeightFromDiskReqInput": _WRITES,
        "InitWeightsUpdateGroupReqInput": _WRITES,
        "DestroyWeightsUpdateGroupReqInput": _WRITES,
        "InitWeightsSendGroupForRemoteInstanceReqInput": _WRITES,
        "SendWeightsToRemoteInstanceReqInput": _WRITES,
        "BeginWeightUpdateReqInput": _WRITES,
        "EndWeightUpdateReqInput": _WRITES,
        "UpdateWeightsFromDistributedReqInput": _WRITES,
        "UpdateWeightsFromTensorReqInput": _WRITES,
        "UpdateWeightsFromIPCReqInput": _WRITES,
        "CheckWeightsReqInput": "it may restore weights that it kept",
        "LoadLoRAAdapterReqInput": _WRITES,
        "LoadLoRAAdapterFromTensorsReqInput": _WRITES,
        "UnloadLoRAAdapterReqInput": _WRITES,
        "RpcReqInput": "it may call any method of the scheduler",
        "ClearHiCacheReqInput": "it empties a store that prefixes may be loaded from",
        "ReleaseMemoryOccupationReqInput": _MEMORY,
        "ResumeMemoryOccupationReqInput": _MEMORY,
        "AddExternalCorpusReqInput": "it changes what drafts are taken from",
        "RemoveExternalCorpusReqInput": "it changes what drafts are taken from",
        "ExpertDistributionReq": "it starts or ends a record over whole forward passes",
        "DumperControlReqInput": "it changes what a forward pass writes out",
        "PdRoleSwitchReqInput": _RANKS,
        "ScaleElasticEPReqInput": _RANKS,
        "PauseGenerationReqInput": "abort and retract empty the engine; in place does not wait",
        "ShutdownReq": "requests in flight are answered first",
    }
)
"""Messages that must find no prefill in flight, and why."""


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
    return type(message).__name__ not in BESIDE_SUSPENDED
