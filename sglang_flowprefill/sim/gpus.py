"""GPUs by name: rates, memory, links.

Source: the system files of NVIDIA AIConfigurator 0.12.0 (Apache-2.0), except where a comment says
otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sglang_flowprefill.errors import PlanError


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As users write it.
        flop_per_s: Dense bfloat16 operations.
        memory_bytes_per_s: Bandwidth of its memory.
        memory_bytes: Its memory.
        link_bytes_per_s: To its neighbours, in one direction.
        tables: Name in the shipped tables; None without any.
    """

    name: str
    flop_per_s: float
    memory_bytes_per_s: float
    memory_bytes: float
    link_bytes_per_s: float
    tables: str | None = None


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            Gpu("a100", 312e12, 2039e9, 80e9, 300e9, "a100"),
            # An A100 but for its links, whose rate is from no table here (commonly given).
            Gpu("a800", 312e12, 2039e9, 80e9, 200e9, "a100"),
            Gpu("h100", 989e12, 3350e9, 80e9, 450e9, "h100"),
            Gpu("h200", 989e12, 4800e9, 141e9, 450e9, "h200"),
            Gpu("b200", 2250e12, 7700e9, 180e9, 900e9, "b200"),  # 180 to 192 GB are given
            Gpu("l40s", 362e12, 864e9, 48e9, 32e9),
        )
    }
)


def find_gpu(name: str) -> Gpu:
    """Return a GPU by name.

    Raises:
        PlanError: There is none of this name.
    """
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise PlanError(f"GPU {name!r}: choose one of {', '.join(GPUS)}") from None
