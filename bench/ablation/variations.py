"""What can be changed: a name, the question it answers, and the flags that change it."""

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Variation:
    """FlowPrefill with one setting changed.

    Attributes:
        group: What is varied.
        flags: That change it.
        devices: Where it makes a difference.
    """

    group: str
    flags: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")


def _granularity(name: str, *more: str) -> Variation:
    return Variation("granularity", ("--flowprefill-granularity", name, *more))


def _one(group: str, flag: str, value: str) -> Variation:
    return Variation(group, (f"--flowprefill-{flag}", value))


_WHOLE = ("--flowprefill-max-operator-ms", "0")
_ON_GPU_ONLY = ("cuda",)  # a CPU runs each operator when it is called

VARIATIONS: Mapping[str, Variation] = {
    DEFAULT: Variation("as it comes"),
    "whole-operators": _granularity("operator", *_WHOLE),
    "half-layer": _granularity("half-layer", *_WHOLE),
    "layer": _granularity("layer", *_WHOLE),
    "chunk-512": _granularity("chunk", *_WHOLE, "--flowprefill-max-chunk-tokens", "512"),
    "no-preemption": _granularity("off", *_WHOLE),
    "s-edf-paper": _one("policy", "policy", "s-edf-paper"),
    "edf": _one("policy", "policy", "edf"),
    "sjf": _one("policy", "policy", "sjf"),
    "hrrn": _one("policy", "policy", "hrrn"),
    "fcfs": _one("policy", "policy", "fcfs"),
    "no-batching": _one("batching", "max-batch-tokens", "1"),
    "predictions-x0.3": _one("prediction", "prediction-factor", "0.3"),
    "predictions-x3": _one("prediction", "prediction-factor", "3"),
    "predictions-noisy": _one("prediction", "prediction-noise", "0.5"),
    "tiles-5ms": _one("tiles", "max-operator-ms", "5"),
    "tiles-20ms": _one("tiles", "max-operator-ms", "20"),
    "tiles-40ms": _one("tiles", "max-operator-ms", "40"),
    "run-ahead-1": Variation("run-ahead", ("--flowprefill-run-ahead", "1"), _ON_GPU_ONLY),
    "run-ahead-8": Variation("run-ahead", ("--flowprefill-run-ahead", "8"), _ON_GPU_ONLY),
}


def variations_for(device: str) -> tuple[str, ...]:
    """Return the variations that make a difference on a device, in order."""
    return tuple(name for name, v in VARIATIONS.items() if device in v.devices)
